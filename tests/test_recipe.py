import json

import pytest
import yaml

from glacier_fastai.core.settings import PHASE_A, LossSettings
from glacier_fastai.errors import RecipeError
from glacier_fastai.recipe import Recipe, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_survives_a_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.about
    recipe.save(tmp_path / "copy.yaml")
    assert load_recipe(tmp_path / "copy.yaml") == recipe
    assert [p.name for p in tmp_path.iterdir()] == ["copy.yaml"]


def test_the_recipes_of_the_design_are_there():
    competition = {"competition_finetune", "competition_glcm", "competition_cpu", "seed_competition"}
    assert set(recipe_names()) == {*competition, "demo", "everest", "forest", "hkh_pretrain", "ratio"}


def test_the_two_main_recipes_say_what_the_design_says():
    hkh, comp = load_recipe("hkh_pretrain"), load_recipe("seed_competition")
    assert (hkh.train.epochs, hkh.train.batch_size, hkh.train.accumulate, hkh.train.lr) == (60, 48, 1, 5e-4)
    assert (comp.train.epochs, comp.train.batch_size, comp.train.accumulate, comp.train.lr) == (150, 32, 2, 1e-4)
    assert (hkh.train.plateau_patience, comp.train.plateau_patience) == (5, 8)
    assert (hkh.loss.focal, hkh.loss.dice, hkh.loss.mcc, hkh.loss.boundary) == (0.6, 0.4, 0, 0)
    assert hkh.loss == LossSettings(**PHASE_A)
    assert comp.loss == LossSettings()
    assert (comp.loss.focal, comp.loss.dice, comp.loss.mcc, comp.loss.boundary) == (0.25, 0.25, 0.35, 0.15)
    assert (comp.ramp.start, comp.ramp.epochs) == ({"boundary": 0.05}, 30)
    assert hkh.balance is None
    assert comp.balance.target == {"background": 0.10, "glacier": 0.35, "debris": 0.40, "lake": 0.15}
    assert hkh.bands == comp.bands == ("blue", "green", "red", "swir1", "thermal")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=1", r"train\.learning_rate: unknown key; allowed are epochs"),
        ("train.epoch=3", r"train\.epoch: unknown key.*did you mean 'epochs'"),
        ("los.dice=1", r"los: unknown key.*did you mean 'loss'"),
        ("train.epochs=many", r"train\.epochs: input should be a valid integer.*not \"many\""),
        ("train.epochs=true", r"train\.epochs: input should be a valid integer"),
        ("train.lr=.inf", "train.lr=.inf: cannot be used"),
        ("ramp.start={borders: 0.1}", r"ramp\.start\.borders: input should be 'focal'"),
        ("train.epochs=0", r"train\.epochs: input should be greater than or equal to 1, not 0"),
        ("train={epochs: 15, steps: 100}", r"train: epochs=15 and steps=100 are both given: set one of them to null"),
        ("train.steps=0", r"train\.steps: input should be greater than or equal to 1, not 0"),
        ("train.steps=1.5", r"train\.steps: input should be a valid integer"),
        (
            "train={steps: 100}",
            r"data\.crops_per_tile=2: train\.steps decides .*; set it to 1, or",
        ),
        ("train={warmup: 0.6, decay: 0.5}", r"train: warmup=0\.6 and decay=0\.5 .*at most 1 together"),
        ("train.warmup=-0.1", r"train\.warmup: input should be greater than or equal to 0"),
        ("train.decay=2", r"train\.decay: input should be less than or equal to 1"),
        ("train.plateau_factor=2", r"train\.plateau_factor: input should be less than 1"),
        ("bands=[blue, purple]", r"bands: unknown band 'purple': use blue, green"),
        ("bands=[blue, swirl1]", r"bands: unknown band 'swirl1'.*did you mean 'swir1'"),
        ("bands=[blue, blue]", r"bands: band 'blue' is named twice"),
        ("bands=[latitude, longitude]", "bands: latitude, longitude alone show no image"),
        ("data.crop=1024", r"data: crop 1024 is larger than tile_size 128: lower data.crop"),
        ("loss={focal: 0, dice: 0, mcc: 0, boundary: 0}", "loss: the weights of all parts are 0"),
        ("loss.focal=-1", r"loss\.focal: input should be greater than or equal to 0"),
        ("loss.alpha=[1, 2]", "loss: alpha has 2 values: one per class"),
        ("ramp.start={bf1: 0.1}", r"ramp\.start\.bf1: that part of the loss has no weight"),
        (
            "balance.target={background: 0.5, lake: 0.4}",
            r"balance\.target: the shares of all classes wanted must sum to 1, not to 0.9",
        ),
        ("loss.alpha=[1, 0, 3, 4]", r"alpha .*of weight 0"),
        (
            "model.attention=csse",
            r"model\.attention: input should be 'scse' or 'cse', not \"csse\"; did you mean 'cse'",
        ),
        ("balance.target={snow: 1.0}", r"balance\.target: no class 'snow'; use background, glacier, debris, lake"),
        ("balance.level=pixels", r"balance\.level: input should be 'tile'.*did you mean 'pixel'"),
        ("balance.min_effective=0", r"balance\.min_effective: input should be greater than 0"),
        ("balance.leve=tile", r"balance\.leve: unknown key.*did you mean 'level'"),
        ("train", "write it as section.field=value"),
        ("bands.more.x=1", "'bands' has no fields below it"),
        ("train.lr=[", "train.lr=\\[: not YAML"),
        (["train.epochs=1", "train=5"], r"train: "),
    ],
)
def test_bad_fields_are_refused_in_one_line(override, message):
    with pytest.raises(RecipeError, match=message) as err:
        load_recipe("demo", override if isinstance(override, list) else [override])
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("steps", "epochs", "each"), [(1, 1, 1), (49, 1, 49), (50, 2, 25), (77, 3, 26), (610, 20, 31), (10_000, 20, 500)]
)
def test_steps_are_cut_into_epochs_of_equal_length(steps, epochs, each, tmp_path):
    recipe = load_recipe("demo", [f"train={{steps: {steps}}}", "data.crops_per_tile=1"])
    recipe.save(tmp_path / "copy.yaml")
    assert load_recipe(tmp_path / "copy.yaml") == recipe
    assert (recipe.train.epochs, recipe.train.n_epoch, recipe.train.epoch_steps) == (None, epochs, each)


def test_epochs_are_60_where_nothing_is_said():
    for train in ("{}", "{epochs: null}", "{steps: null, epochs: null}"):
        found = load_recipe("demo", [f"train={train}"]).train
        assert (found.epochs, found.n_epoch, found.steps, found.epoch_steps) == (60, 60, None, None)
    assert load_recipe("demo", ["train.warmup=0.1", "train.decay=0.9"]).train.decay == 0.9


def test_every_mistake_is_named_at_once():
    with pytest.raises(RecipeError, match=r"train\.lr.*seed"):
        load_recipe("demo", ["train.lr=-1", "seed=-1"])


def test_overrides_reach_sections_and_numbers_are_numbers():
    recipe = load_recipe("demo", ["train.lr=1e-4", "ramp=null", "data.spatial=false", "bands=[red, nir]"])
    assert (recipe.train.lr, recipe.ramp, recipe.data.spatial, recipe.bands) == (1e-4, None, False, ("red", "nir"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "not a recipe"), ("a: [", "not YAML"), ("about: x\n", "bands: missing"), ("\x00", "not YAML")],
)
def test_files_that_are_no_recipes(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_missing_recipes_are_named():
    with pytest.raises(RecipeError, match="no recipe 'everst': use competition_cpu.*did you mean 'everest'"):
        load_recipe("everst")
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such file"):
        load_recipe("nowhere.yaml")


def test_a_recipe_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        load_recipe("demo").seed = 1


def test_numbers_are_written_as_people_write_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("bands: [red, nir]\nabout: 1e5 tiles\ntrain: {lr: 1e-4, weight_decay: 5E-2}\n")
    recipe = load_recipe(path, ["train.clip=2e0"])
    assert (recipe.train.lr, recipe.train.weight_decay, recipe.train.clip) == (1e-4, 5e-2, 2.0)
    assert recipe.about == "1e5 tiles"


def test_the_schema_describes_every_field():
    def undescribed(node, path=""):
        for name, field in node.get("properties", {}).items():
            if "description" not in field and "$ref" not in field and "allOf" not in field:
                yield f"{path}.{name}"

    schema = Recipe.model_json_schema()
    assert json.dumps(schema)
    for name, section in schema["$defs"].items():
        assert list(undescribed(section, name)) == []


def test_yaml_holds_every_default():
    tree = yaml.safe_load(load_recipe("demo").to_yaml())
    assert tree["train"]["clip"] == 1.0
    assert tree["loss"]["gamma"] == 2.0


LIST = "[flip, rotate: 90, scale: 0.3, shift: 0.2, elastic: 4, grid: 0.3, brightness: 0.3, contrast: 0.3]"


def test_augment_may_be_a_name_a_list_or_a_mapping(tmp_path):
    def augment(text):
        recipe = load_recipe("demo", [f"augment={text}"])
        recipe.save(tmp_path / "copy.yaml")
        assert load_recipe(tmp_path / "copy.yaml") == recipe
        return {name: value for name, value in recipe.augment.model_dump().items() if value}

    light = {"flip": True, "rotate": 45, "scale": 0.2, "shift": 0.1, "brightness": 0.2, "contrast": 0.2}
    assert augment("light") == light
    strong = {"flip": True, "rotate": 90, "scale": 0.3, "shift": 0.2, "elastic": 4, "grid": 0.3}
    strong |= {"brightness": 0.3, "contrast": 0.3}
    assert augment(LIST) == strong
    assert augment("heavy") == strong | {"gamma": 0.3, "noise": 0.1, "blur": 1.0, "dropout": 0.1}
    assert augment("[rotate: 45, blur, noise]") == {"rotate": 45, "blur": 1.0, "noise": 0.1}
    assert augment("[flip: false, rotate: 10]") == {"rotate": 10}
    assert augment("[]") == {}
    assert augment("[sun, rotate: 15]") == {"sun": 150, "rotate": 15}
    assert augment("[sun: 30]") == {"sun": 30}
    assert augment("{rotate: 10}") == {"flip": True, "rotate": 10}


def test_the_recipes_augment_as_the_design_says():
    assert load_recipe("hkh_pretrain").augment == load_recipe("demo", ["augment=light"]).augment
    for name in ("seed_competition", "competition_glcm"):
        assert load_recipe(name).augment == load_recipe("demo", [f"augment={LIST}"]).augment


def test_single_fields_of_a_named_augmentation_can_be_set():
    augment = load_recipe("hkh_pretrain", ["augment.rotate=20", "augment.flip=false"]).augment
    assert (augment.rotate, augment.flip, augment.scale) == (20, False, 0.2)
    assert load_recipe("hkh_pretrain", ["augment=heavy", "augment.noise=0"]).augment.noise == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hevy", r"augment: unknown name 'hevy': use light, heavy, a list such as .*; did you mean 'heavy'\?"),
        (
            "[flip, rotat: 45]",
            r"augment: unknown transform 'rotat': use flip, rotate, scale,.*; did you mean 'rotate'\?",
        ),
        ("[flip, colour]", r"augment: unknown transform 'colour': use flip"),
        ("[flip, 3]", r"augment: unknown transform '3': use flip"),
        ("[flip, {}]", r"augment: unknown transform '\{\}': use flip"),
        ("[rotate: 45, flip, rotate]", r"augment: 'rotate' is named twice"),
        ("[rotate: 200]", r"augment\.rotate: input should be less than or equal to 180, not 200"),
        ("[rotate: ]", r"augment\.rotate: input should be a valid number, not null"),
        ("{rotat: 45}", r"augment\.rotat: unknown key; allowed are flip,.*did you mean 'rotate'"),
        ("{sun: 150}", r"augment: flip turns the light on slopes and sun keeps it: use one of them"),
        ("{dropout: 2}", r"augment\.dropout: input should be less than or equal to 1"),
        ("{gamma: -1}", r"augment\.gamma: input should be greater than or equal to 0"),
        ("{blur: 99}", r"augment\.blur: input should be less than or equal to 10"),
        ("3", r"augment: use light, heavy, a list such as \[flip, rotate: 45\], or \[\] for none, not 3"),
        ("null", r"augment: use light, heavy.*or \[\] for none, not null"),
    ],
)
def test_bad_augmentations_are_refused_in_one_line(value, message):
    with pytest.raises(RecipeError, match=message) as err:
        load_recipe("demo", [f"augment={value}"])
    assert "\n" not in str(err.value)
    assert "augment: augment" not in str(err.value)


def test_a_bad_name_is_named_when_a_field_of_it_is_set():
    with pytest.raises(RecipeError, match="augment: unknown name 'hevy'"):
        load_recipe("demo", ["augment=hevy", "augment.noise=0"])


def test_the_schema_knows_the_three_forms_of_augment():
    field = Recipe.model_json_schema()["properties"]["augment"]
    names, items, mapping = field["anyOf"]
    assert names == {"enum": ["light", "heavy"]}
    assert items["type"] == "array"
    assert mapping == {"$ref": "#/$defs/Augmentation"}
    fields = Recipe.model_json_schema()["$defs"]["Augmentation"]["properties"]
    assert items["items"]["anyOf"][0]["enum"] == list(fields)


def test_an_override_changes_no_preset():
    before = load_recipe("hkh_pretrain").augment
    assert load_recipe("hkh_pretrain", ["augment.rotate=20"]).augment.rotate == 20
    assert load_recipe("hkh_pretrain").augment == before


def test_steps_that_are_set_take_the_place_of_epochs_and_the_other_way_round(tmp_path):
    train = load_recipe("demo", ["train.steps=600"]).train
    assert (train.steps, train.epochs) == (600, None)
    train = load_recipe("competition_cpu", ["train.epochs=3"]).train
    assert (train.steps, train.n_epoch) == (None, 3)
    assert load_recipe("competition_cpu", ["train.epochs=null"]) == load_recipe("competition_cpu")
    with pytest.raises(RecipeError, match="epochs=3 and steps=600 are both given"):
        load_recipe("demo", ["train.steps=600", "train.epochs=3"])
    (tmp_path / "odd.yaml").write_text("bands: [red]\ndata: 3\n")
    with pytest.raises(RecipeError, match="odd.yaml: data: "):
        load_recipe(tmp_path / "odd.yaml", ["train.steps=600"])


@pytest.mark.parametrize("scales", [[1.0] * 3000, [1.0, 0.5, 1.0], [k / 8 for k in range(4, 21)]])
def test_scales_are_few_and_each_named_once(scales):
    with pytest.raises(RecipeError, match="scales"):
        load_recipe("demo", [f"predict.scales={scales}"])
