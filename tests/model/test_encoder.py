import hashlib
import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from scenes import make_store, tiny_recipe

from glacier_fastai.errors import BundleError, RecipeError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.encoder import load_encoder
from glacier_fastai.model.registry import build_model
from glacier_fastai.reading import read_checkpoint
from glacier_fastai.train.run import train

BANDS = ("blue", "green", "red", "swir1")


def weights_of(name, path, change=lambda weights: weights, metadata=None, **options):
    """Write the weights of a whole timm network, classifier included."""
    torch.manual_seed(1)
    weights = timm.create_model(name, **options).state_dict()
    save_file({k: v.clone().contiguous() for k, v in change(weights).items()}, path, metadata)
    return weights


@pytest.mark.parametrize(
    ("name", "encoder", "first"),
    [
        ("test_resnet.r160_in1k", "tu-test_resnet.r160_in1k", "conv1.0.weight"),
        ("test_convnext.r160_in1k", "tu-test_convnext.r160_in1k", "stem.0.weight"),
        ("resnet18", "resnet18", "conv1.weight"),
    ],
)
def test_an_encoder_starts_from_weights_of_timm(tmp_path, name, encoder, first):
    """Red, green and blue by name, other bands from their mean; the rest as it is, the classifier left out."""
    there = weights_of(name, tmp_path / "w.safetensors")
    model = build_model("fpn", BANDS, encoder=encoder)
    sha256, said = load_encoder(model, tmp_path / "w.safetensors", BANDS)
    assert sha256 == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert said[0] == "first convolution: blue, green, red kept; swir1 start from the mean of these"
    assert said[1] in ("left out: fc", "left out: head")
    mine = {k.removeprefix("model."): v for k, v in model.encoder.state_dict().items()}
    rgb, conv = there.pop(first), mine.pop(first if first in mine else "stem_0.weight")
    assert torch.equal(conv[:, [2, 1, 0]], rgb)
    torch.testing.assert_close(conv[:, 3], rgb.mean(1))
    for key, value in mine.items():
        theirs = there[key] if key in there else there[key.replace("stages_", "stages.").replace("stem_", "stem.")]
        assert torch.equal(value, theirs), key


def test_of_a_whole_model_in_half_precision_with_its_own_bands(tmp_path):
    def change(weights):
        return {f"backbone.{k}": v.half() if v.ndim else v for k, v in weights.items()} | {"mask_token": torch.ones(1)}

    about = {"bands": json.dumps(["swir1", "nir", "red", "rededge1"])}
    there = weights_of("test_resnet.r160_in1k", tmp_path / "w.safetensors", change, about, in_chans=4)
    model = build_model("unet", BANDS, encoder="tu-test_resnet.r160_in1k")
    _, said = load_encoder(model, tmp_path / "w.safetensors", BANDS)
    assert said == [
        "first convolution: red, swir1 kept; blue, green start from the mean of these; nir, rededge1 dropped",
        "left out: fc",
    ]
    first = model.encoder.model.state_dict()["conv1.0.weight"]
    assert first.dtype == torch.float32 and torch.equal(first[:, 2:], there["conv1.0.weight"].half().float()[:, [2, 0]])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("resnet34", None, r"not of the encoder resnet18: it has layer1\.2\.\S+, too; set model.encoder"),
        ("resnet50", None, r"not of the encoder resnet18: it has layer1\.0\.\S+, too"),
        ("resnet18", lambda w: {**w, "bn1.bias": w["bn1.bias"][1:]}, r"bn1.bias is \(63,\), wanted is \(64,\)"),
        ("test_convnext.r160_in1k", None, "not of the encoder resnet18: it has no conv1.weight"),
        ("resnet18", lambda w: {k: v for k, v in w.items() if k != "bn1.bias"}, "it has no bn1.bias"),
        ("resnet18", lambda w: {**w, "bn1.bias": w["bn1.bias"] / 0}, "bn1.bias is not finite"),
        ("resnet18", lambda w: {**w, "bn1.running_var": w["bn1.running_var"] - 2}, "running_var is not finite"),
        ("resnet18", lambda w: {**w, "conv1.weight": w["conv1.weight"][:, :2]}, "which 2 bands .*; put their names .*"),
        ("resnet18", lambda w: {}, "it has no conv1.weight"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_in_one_line(tmp_path, name, change, message):
    weights_of(name, tmp_path / "w.safetensors", change or (lambda w: w))
    model = build_model("unet", BANDS, encoder="resnet18", attention=None)
    with pytest.raises(BundleError, match=rf"w.safetensors: .*{message}") as err:
        load_encoder(model, tmp_path / "w.safetensors", BANDS)
    assert "\n" not in str(err.value)


def test_a_pickle_and_a_damaged_file_are_refused(tmp_path):
    model = build_model("unet", BANDS, encoder="tu-test_resnet.r160_in1k")
    torch.save(model.encoder.state_dict(), tmp_path / "w.pth")
    weights_of("test_resnet.r160_in1k", tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-100])
    for name in ("w.pth", "cut.safetensors"):
        with pytest.raises(BundleError, match=f"{name}: not a safetensors file, or cut short.*a pickle may hold code"):
            load_encoder(model, tmp_path / name, BANDS)
    with pytest.raises(BundleError, match="none.safetensors: no such file"):
        load_encoder(model, tmp_path / "none.safetensors", BANDS)


def test_a_run_records_them_and_its_bundle_needs_them_no_more(tmp_path, capsys):
    file, store = tmp_path / "w.safetensors", make_store(tmp_path / "s")
    weights_of("test_resnet.r160_in1k", file)
    recipe = tiny_recipe("train.epochs=1", f"model.weights={file}")
    run = train(recipe, store, tmp_path / "run")
    assert f"weights  of the encoder {file}" in capsys.readouterr().err
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_checkpoint(run / "last.ckpt", BundleError)["identity"]["encoder"] == sha256
    assert json.loads((run / "environment.json").read_text())["encoder_sha256"] == sha256
    file.unlink()
    bundle = ModelBundle.load(run / "best.safetensors")
    bundle.model()
    assert bundle.recipe["model"]["weights"] == "w.safetensors"
    for other, kwargs, message in (
        (recipe, {"weights": run / "best.safetensors"}, "model.weights=.*: training starts from .*leave one out"),
        (
            tiny_recipe("model={arch: glavitu, width: 8, weights: w}"),
            {},
            "model.weights: model 'glavitu' has no encoder",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            train(other, store, tmp_path / "other", **kwargs)
    assert not (tmp_path / "other").exists()
