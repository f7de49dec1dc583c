import pytest
import torch
from contract.models import BANDS, ModelContract
from scenes import make_store
from two_ranks import outputs_square

from glacier_fastai.bands import CLASSES, LOCATION
from glacier_fastai.errors import RecipeError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.glavitu import Location, band_groups, location_vector
from glacier_fastai.model.registry import build_model, groups
from glacier_fastai.train.learner import glacier_learner

OPTICAL = ("blue", "green", "red", "nir", "swir1", "swir2")
DEM = ("elevation", "slope")
TWO = ("background", "glacier")
SAR = ("ndvi", "ndsi", "ndwi", "ndsi_flipped")  # stand for channels of radar


class TestGlaViTU(ModelContract):
    name = "glavitu"
    options = {"width": 16, "blocks": 2, "image_size": 64}
    adapts = False


class TestGlaViTUOfAPlace(TestGlaViTU):
    bands = (*BANDS[:2], *LOCATION, *BANDS[2:])

    @pytest.fixture
    def store(self, tmp_path):
        return make_store(tmp_path / "store", placed=True)


def counts(bands, classes=TWO, **options):
    return numbers(build_model("glavitu", bands, classes, **options))


def numbers(model):
    buffers = [b for name, b in model.named_buffers() if "running" in name]
    return sum(p.numel() for p in model.parameters()), sum(b.numel() for b in buffers)


@pytest.mark.parametrize(
    ("bands", "classes", "options", "trainable", "buffers"),
    [
        (OPTICAL + DEM, TWO, {}, 10_024_516, 7_552),
        (OPTICAL + DEM, TWO, {"auxiliary": 0}, 10_024_386, 7_552),
        (OPTICAL + DEM + LOCATION, TWO, {}, 10_029_252, 7_808),
        ((*OPTICAL, *DEM, "thermal"), TWO, {}, 10_070_660, 7_808),
        (
            OPTICAL + DEM + SAR + ("pan", "thermal"),
            TWO,
            {"groups": {"o": OPTICAL, "d": DEM, "co": SAR[:2], "cross": SAR[2:], "in": ("pan", "thermal")}},
            10_164_676,
            8_320,
        ),
        (OPTICAL + DEM + SAR[:2], TWO, {}, 10_071_236, 7_808),
        (BANDS, CLASSES, {"groups": {"all": BANDS}}, 9_977_480, 7_296),
        (BANDS, CLASSES, {"groups": {"all": BANDS}, "image_size": 128}, 9_944_712, 7_296),
        (BANDS, CLASSES, {"groups": {"all": BANDS}, "image_size": 256}, 9_957_000, 7_296),
        (BANDS, CLASSES, {"groups": {"all": BANDS}, "image_size": 512}, 10_006_152, 7_296),
        (OPTICAL[:4], CLASSES, {}, 9_976_904, 7_296),
        ((*OPTICAL[:4], "thermal"), CLASSES, {}, 10_023_048, 7_552),
        (BANDS, CLASSES, {"groups": {"all": BANDS}, "width": 48}, 5_623_784, None),
        (BANDS, CLASSES, {"groups": {"all": BANDS}, "width": 32}, 2_509_640, None),
        (BANDS, CLASSES, {"groups": {"all": BANDS}, "width": 32, "blocks": 6}, 2_433_416, None),
    ],
)
def test_parameters_are_those_of_the_published_network(bands, classes, options, trainable, buffers):
    found = counts(bands, classes, **options)
    assert found[0] == trainable and buffers in (None, found[1])


def test_a_vector_of_twelve_regions_has_the_parameters_of_the_published_network():
    model = build_model("glavitu", OPTICAL + DEM + LOCATION, TWO)
    model.location = Location(12, 64, 0)
    assert numbers(model) == (10_029_764, 7_808)
    assert numbers(model.location) == (5_248, 256)


def test_parts_are_those_of_the_published_network():
    model = build_model("glavitu", OPTICAL + DEM, TWO)

    def size(part):
        return sum(t.numel() for name, t in part.state_dict().items() if "tracked" not in name)

    assert [size(p) for p in (model.fusion, model.transformer, model.unet, model.head)] == [
        96_256,
        1_838_208,
        8_097_344,
        130,
    ]


def test_groups_by_what_bands_measure():
    assert band_groups(["thermal", "blue", "slope", "ndsi", "glcm_contrast(blue)", "pan"]) == {
        "thermal": [0],
        "optical": [1, 5],
        "dem": [2],
        "indices": [3, 4],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": {"a": ["blue", "blue"], "b": ["green"]}}, "groups: name each band once.*not 'blue'"),
        ({"groups": {"a": ["blue"]}}, "groups: name each band once.*not 'green'"),
        ({"groups": {"a": ["blue", "green", "nir"]}}, "not 'nir'"),
        ({"groups": {"a": ["blue", "green"], "b": []}}, "groups that are not empty"),
        ({"width": 30}, "width 30: use a multiple of 4"),
        ({"image_size": 8}, "image_size 8: use a multiple of 16"),
        ({"blocks": -1}, "blocks -1"),
        ({"dropout": 2.0}, "dropout 2.0"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(RecipeError, match=message):
        build_model("glavitu", ["blue", "green"], **options)


@pytest.mark.parametrize(
    ("bands", "groups", "message"),
    [
        (["blue", "latitude"], None, "latitude and longitude tell a place together; name both, or neither"),
        (["longitude", "latitude"], None, "alone show no image"),
        (["blue", *LOCATION], {"a": ["blue", *LOCATION]}, r"groups: name each band once \(blue\).*not 'latitude'"),
    ],
)
def test_places_that_cannot_be_told(bands, groups, message):
    with pytest.raises(RecipeError, match=message):
        build_model("glavitu", bands, groups=groups)


def test_the_vector_is_sine_and_cosine_of_the_mean_place_of_pixels_with_data():
    lat, lon = torch.tensor([[0.50, 0.52, 0.0]]), torch.tensor([[-3.14, 3.13, 0.0]])  # across the antimeridian
    place = torch.stack([torch.stack([lat, lon]), torch.zeros(2, 1, 3)])
    middle = torch.tensor([0.51, (2 * torch.pi - 3.14 + 3.13) / 2])
    want = torch.stack([middle.sin(), middle.cos()], 1).flatten()
    found = location_vector(place)
    torch.testing.assert_close(found[0], want, rtol=1e-4, atol=1e-4)
    assert found[1].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(location_vector(place.flip(3)), found)


def test_only_the_place_tells_images_apart_and_nodata_of_it_does_not():
    torch.manual_seed(0)
    model = build_model("glavitu", (*BANDS, *LOCATION), **TestGlaViTU.options).eval()
    for layer in model.location.layers:
        if isinstance(layer, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(layer.bias)
    x = torch.randn(1, 7, 64, 64)
    x[:, 5], x[:, 6] = 0.5, 1.5
    other, unknown, hole = x.clone(), x.clone(), x.clone()
    other[:, 6], unknown[:, 5:] = 1.6, 0
    hole[:, 5:, :32] = 0
    assert not torch.allclose(model(other), model(x), atol=1e-4)
    assert not torch.allclose(model(unknown), model(x), atol=1e-4)
    torch.testing.assert_close(model(hole), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unknown", [1, 2])
def test_every_parameter_gets_a_finite_gradient_where_places_are_unknown(unknown):
    model, x = build_model("glavitu", (*BANDS, *LOCATION), **TestGlaViTU.options), torch.randn(2, 7, 64, 64)
    x[:unknown, 5:] = 0
    outputs_square(model, x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def small(**options):
    torch.manual_seed(0)
    return build_model("glavitu", BANDS, **{**TestGlaViTU.options, **options})


def test_groups_in_another_order_change_nothing():
    one, other = (small(groups=g).eval() for g in ({"a": BANDS[:3], "b": BANDS[3:]}, {"b": BANDS[3:], "a": BANDS[:3]}))
    other.load_state_dict(one.state_dict())
    x = torch.randn(1, 5, 64, 64)
    torch.testing.assert_close(one(x), other(x))


def test_the_auxiliary_head_is_of_training_alone():
    model, x = small(), torch.randn(2, 5, 50, 40)
    assert model.eval()(x).shape == (2, 4, 50, 40) and model.auxiliary_logits is None
    before = model(x)
    torch.nn.init.normal_(model.auxiliary.weight)
    assert torch.equal(model(x), before)
    assert isinstance(model.train()(x), torch.Tensor) and model.auxiliary_logits.shape == (2, 4, 50, 40)


def test_positions_of_the_size_trained_on_are_taken_as_they_are(monkeypatch):
    model, x, resize = small().eval(), torch.randn(1, 5, 64, 64), torch.nn.functional.interpolate
    want = model(x)
    monkeypatch.setattr(
        torch.nn.functional,
        "interpolate",
        lambda x, *args, mode, **kwargs: x if mode == "bicubic" else resize(x, *args, mode=mode, **kwargs),
    )
    assert torch.equal(model(x), want)


def test_body_and_head_are_groups():
    body, head = groups(small())
    assert len(head) < len(body)


def test_its_bundle_has_no_auxiliary_head_and_training_goes_on_from_it(store):
    from glacier_fastai.data.block import GlacierDataLoaders

    dls = GlacierDataLoaders.from_store(store, 0, bs=4, folds=3)
    learn = glacier_learner(dls, "glavitu", seed=0, **TestGlaViTU.options)
    before = learn.model.auxiliary.weight.detach().clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    assert not torch.equal(learn.model.auxiliary.weight.cpu(), before)
    bundle = ModelBundle.from_learner(learn)
    assert not [k for k in bundle.weights if k.startswith("auxiliary")] and bundle.options["auxiliary"] == 0
    fresh = small(dropout=0.1)
    assert bundle.load_into(fresh, BANDS) == []
    torch.testing.assert_close(fresh.head.weight, learn.model.head.weight.cpu())
    x = torch.randn(1, 5, 64, 64)
    torch.testing.assert_close(bundle.model()(x), learn.model.cpu().eval()(x), rtol=1e-3, atol=1e-3)
