import pytest
import torch
from contract.models import BANDS, ModelContract

from glacier_fastai.bands import CLASSES
from glacier_fastai.errors import RecipeError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.glavitu import band_groups
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


def counts(bands, classes=TWO, **options):
    model = build_model("glavitu", bands, classes, **options)
    buffers = [b for name, b in model.named_buffers() if "running" in name]
    return sum(p.numel() for p in model.parameters()), sum(b.numel() for b in buffers)


@pytest.mark.parametrize(
    ("bands", "classes", "options", "trainable", "buffers"),
    [
        (OPTICAL + DEM, TWO, {}, 10_024_516, 7_552),
        (OPTICAL + DEM, TWO, {"auxiliary": 0}, 10_024_386, 7_552),
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
