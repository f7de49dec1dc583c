import importlib
import math
import sys

import pytest
import torch
from contract.models import ModelContract
from torch import nn

from glacier_fastai.errors import BundleError, RecipeError
from glacier_fastai.model import registry
from glacier_fastai.model.registry import architecture, build_model, built_as, model_names, of_recipe, register_model
from glacier_fastai.recipe import ModelRecipe


class Pixelwise(nn.Module):
    """A network without an encoder."""

    def __init__(self, bands, classes, width=8):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(len(bands), width, 1), nn.ReLU(), nn.Conv2d(width, len(classes), 1))

    def forward(self, x):
        return self.net(x)


@pytest.fixture(autouse=True)
def _forgotten():
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
    registry._entry_points.cache_clear()


class TestOwn(ModelContract):
    """A network that a user registered does all that ours do."""

    name = "pixelwise"
    options = {"width": 6}
    adapts = False

    @pytest.fixture(autouse=True)
    def _registered(self, _forgotten):
        register_model("pixelwise", Pixelwise)


def test_an_own_network_can_say_how_it_adapts_and_what_is_frozen():
    register_model(
        "adapting",
        Pixelwise,
        groups=lambda model: [list(model.net[0].parameters()), list(model.net[2].parameters())],
        first=lambda model: "net.0.weight",
        head=lambda model: ["net.2.weight", "net.2.bias"],
    )
    model = build_model("adapting", ["red", "nir"], width=3)
    assert model.net[0].weight.shape == (3, 2, 1, 1) and built_as(model) == ("adapting", {"width": 3})
    assert [len(g) for g in registry.groups(model)] == [2, 2]


def test_a_cell_of_a_notebook_may_be_run_again_but_a_name_is_not_taken_twice():
    register_model("mine", Pixelwise)
    register_model("mine", Pixelwise)
    for name in ("mine", "unet"):
        with pytest.raises(RecipeError, match=f"model '{name}': that name is taken"):
            register_model(name, lambda bands, classes: nn.Conv2d(len(bands), len(classes), 1))


def test_unknown_names_and_options_are_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="no model 'unett': use .*unet.*register_model.*did you mean 'unet'"):
        architecture("unett")
    with pytest.raises(
        RecipeError, match="'unet' has no option encodr; its options are encoder, attention, scale; did you mean"
    ):
        architecture("unet", {"encodr": "resnet18"})
    with pytest.raises(RecipeError, match="'needy': its builder has no default for depth"):
        register_model("needy", lambda bands, classes, depth: None)


def test_an_encoders_name_alone_is_a_unet_with_it():
    found, options = architecture("resnet18", {"attention": None})
    assert (found.name, options) == ("unet", {"encoder": "resnet18", "attention": None, "scale": 1.0})


def test_a_recipe_names_a_network_and_what_it_takes():
    register_model("own", Pixelwise)
    assert of_recipe(ModelRecipe())[1] == {"encoder": "resnet34", "attention": "scse", "scale": 1.0}
    assert of_recipe(ModelRecipe(arch="fpn", encoder="resnet50"))[1] == {"encoder": "resnet50", "scale": 1.0}
    assert of_recipe(ModelRecipe(arch="own", options={"width": 4}))[1] == {"width": 4}
    with pytest.raises(RecipeError, match="'own' has no option encoder; its options are width"):
        of_recipe(ModelRecipe(arch="own", encoder="resnet18"))
    with pytest.raises(RecipeError, match="'fpn' has no option attention"):
        of_recipe(ModelRecipe(arch="fpn", attention="cse"))


@pytest.mark.parametrize("arch", ["unet", "deeplabv3plus", "segformer", "glavitu"])
def test_a_dial_of_size(arch):
    """Each size is larger than the one before, and base is what it is without; what a recipe says besides wins."""
    sizes = ("tiny", "small", "base", "large")
    options = [of_recipe(ModelRecipe(arch=arch, size=size))[1] for size in sizes]
    shapes = [registry.weight_shapes(arch, ("red", "nir"), **o).values() for o in options]
    numbers = [sum(math.prod(shape) for shape in each) for each in shapes]
    assert numbers == sorted({*numbers}) and len(numbers) == 4
    assert options[2] == of_recipe(ModelRecipe(arch=arch))[1]
    given = {"width": 8} if arch == "glavitu" else {"encoder": "resnet18"}
    assert of_recipe(ModelRecipe(arch=arch, size="large", **given))[1] == {**options[3], **given}


def test_a_network_of_one_size_is_refused_another():
    with pytest.raises(RecipeError, match="model 'forest' has no size 'tiny'; its sizes are none: leave size out"):
        of_recipe(ModelRecipe(arch="forest", size="tiny"))
    with pytest.raises(RecipeError, match="its sizes are tiny, small, base, large; did you mean 'large'"):
        registry.of_size(architecture("unet")[0], "larg")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda bands, classes: nn.Conv2d(len(bands), 7, 1),
            r"gives \(1, 7, 40, 56\).*\(1, 4, 40, 56\) are wanted",
        ),
        (lambda bands, classes: nn.Conv2d(len(bands), 4, 3), r"gives \(1, 4, 38, 54\)"),
        (lambda bands, classes: nn.Conv2d(9, 4, 1), "cannot take an image of 2 bands and 40 x 56 px"),
        (lambda bands, classes: "a string", "returned str, not a torch.nn.Module"),
        (lambda bands, classes: {}["x"], "cannot be built for 2 bands"),
    ],
)
def test_builders_that_do_not_fit_are_refused_in_one_line(build, message):
    register_model("odd", build)
    with pytest.raises(RecipeError, match=message) as err:
        build_model("odd", ["red", "nir"])
    assert "'odd'" in str(err.value) and "\n" not in str(err.value)


def test_a_module_from_elsewhere_has_no_bundle_until_it_is_registered():
    with pytest.raises(BundleError, match=r"model Conv2d: no bundle can hold it.*register_model\(NAME, build\)"):
        built_as(nn.Conv2d(5, 4, 1))


PLUGIN = """
from torch import nn

def build(bands, classes, width=4):
    return nn.Sequential(nn.Conv2d(len(bands), width, 1), nn.Conv2d(width, len(classes), 1))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed distribution with a network that works and one whose module cannot be imported."""
    (tmp_path / "glacier_plugin.py").write_text(PLUGIN)
    (tmp_path / "glacier_broken.py").write_text("import a_module_that_is_not_there")
    about = tmp_path / "glacier_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: glacier-plugin\nVersion: 1.0\n")
    lines = ["[glacier_fastai.models]", "tinynet = glacier_plugin:build", "broken = glacier_broken:build"]
    (about / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    registry._entry_points.cache_clear()
    yield
    sys.modules.pop("glacier_plugin", None)


def test_networks_come_from_installed_packages_and_a_broken_one_hurts_nobody(plugin):
    assert {"tinynet", "broken", "unet"} <= set(model_names())
    assert build_model("tinynet", ["red"], width=2)(torch.zeros(1, 1, 8, 8)).shape == (1, 4, 8, 8)
    with pytest.raises(RecipeError, match="'broken': .* glacier_broken:build of glacier-plugin.*ModuleNotFound"):
        architecture("broken")
    with pytest.raises(RecipeError, match="that name is taken"):
        register_model("tinynet", Pixelwise)
