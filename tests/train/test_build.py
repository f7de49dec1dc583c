from dataclasses import replace

import pytest
import torch
from scenes import BANDS, TINY, make_store, tiny_recipe

from glacier_fastai.errors import BundleError, RecipeError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.unet import glacier_unet
from glacier_fastai.train import build
from glacier_fastai.train.build import compile_model, effective_precision, make_dls, make_learner
from glacier_fastai.train.steps import CpuMixedPrecision


def test_the_loaders_have_what_the_recipe_says(tmp_path):
    target = "balance.target={background: 0.4, glacier: 0.3, debris: 0.3}"
    recipe = tiny_recipe(target, "balance.min_effective=0.9", "seed=7", "train.workers=3")
    train = make_dls(recipe, make_store(tmp_path / "s"), 0).train
    assert (train.seed, train.threads) == (7, 3)
    assert train.crops.sampling.target.tolist() == [0.4, 0.3, 0.3, 0]
    assert train.crops.sampling.effective >= 0.9 - 1e-6
    assert make_dls(tiny_recipe(), make_store(tmp_path / "t"), 0).train.crops is None


def test_processes_share_a_batch_evenly_or_are_refused(store, monkeypatch):
    monkeypatch.setattr(build, "world_size", lambda: 3)
    assert make_dls(tiny_recipe("train.batch_size=6"), store, 0).train.bs == 2
    for size, say in ((4, "use 3 or 6"), (2, "use 3 or 3")):
        with pytest.raises(RecipeError, match=f"batch_size={size}: 3 processes cannot share it evenly; {say}"):
            make_dls(tiny_recipe(f"train.batch_size={size}"), store, 0)


def test_a_batch_of_one_place_is_refused(tmp_path):
    more = ["model.arch=glavitu", "train.batch_size=1", "data.tile_size=64", "data.crop=64"]
    store = make_store(tmp_path / "s", size=64, placed=True)
    with pytest.raises(RecipeError, match="batch_size: a single place cannot be normalised; use larger batches"):
        make_dls(tiny_recipe(*more, "bands=[red, latitude, longitude]"), store, 0)
    assert make_dls(tiny_recipe(*more, "bands=[red]"), store, 0).train.bs == 1


def test_statistics_are_those_of_the_data_or_of_the_weights(trained, tmp_path):
    bundle = ModelBundle.load(trained[0] / "best.safetensors")
    other = make_store(tmp_path / "s", seed=50)
    new = make_dls(tiny_recipe(), other, 0, bundle)
    old = make_dls(tiny_recipe("data.statistics=weights", "bands=[red, blue]"), other, 0, bundle)
    at = [bundle.bands.index(b) for b in ("red", "blue")]
    assert [float(v) for v in old.stats[0]] == pytest.approx([bundle.mean[i] for i in at])
    assert [float(v) for v in old.stats[1]] == pytest.approx([bundle.std[i] for i in at])
    assert [float(v) for v in new.stats[0]] != pytest.approx(bundle.mean)
    other_units = replace(bundle, profile=bundle.profile.model_copy(update={"units": dict.fromkeys(BANDS, "kelvin")}))
    with pytest.raises(BundleError, match="in unknown units .* trained on .*kelvin"):
        make_dls(tiny_recipe("data.statistics=weights", "bands=[red, blue]"), other, 0, other_units)
    with pytest.raises(RecipeError, match=r"data\.statistics=weights: there are no weights"):
        make_dls(tiny_recipe("data.statistics=weights"), other, 0)
    bands = make_store(tmp_path / "n", ("red", "nir"))
    with pytest.raises(BundleError, match=r"no statistics of band nir; set data\.statistics=data"):
        make_dls(tiny_recipe("data.statistics=weights", "bands=[red, nir]"), bands, 0, bundle)


def test_precision_follows_the_recipe_and_the_device(monkeypatch):
    assert effective_precision(tiny_recipe("train.precision=bf16")) == "bf16"
    for able, want in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert effective_precision(tiny_recipe("train.precision=auto")) == want
    monkeypatch.setattr(build, "default_device", lambda: torch.device("cuda"))
    assert effective_precision(tiny_recipe("train.precision=auto")) == "fp16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(RecipeError, match="this GPU has no bf16; use auto, fp16 or fp32"):
        effective_precision(tiny_recipe("train.precision=bf16"))


def test_the_learner_trains_in_that_precision_and_channels_last(store):
    learn = make_learner(tiny_recipe("train.precision=bf16"), make_dls(tiny_recipe(), store, 0))
    assert any(isinstance(cb, CpuMixedPrecision) for cb in learn.cbs)
    assert next(learn.model.encoder.parameters()).is_contiguous(memory_format=torch.channels_last)
    assert not hasattr(make_learner(tiny_recipe(), make_dls(tiny_recipe(), store, 0)), "mixed_precision")


def test_a_model_is_compiled_in_place_or_stays_as_it_is_with_a_reason(monkeypatch, capsys):
    model, x = glacier_unet(TINY, 5, 4, None), torch.randn(2, 5, 32, 32)
    before, names = model(x).detach(), list(model.state_dict())
    statistics = model.encoder.model.bn1.running_mean.clone()

    def no_compiler():
        model._compiled_call_impl = lambda *_: (_ for _ in ()).throw(RuntimeError("\nno C++ compiler here\nmore"))

    monkeypatch.setattr(model, "compile", no_compiler)
    compile_model(model, x)
    said = "train.compile: cannot be done here, so the model is trained as it is (no C++ compiler here)\n"
    assert capsys.readouterr().err == said
    assert torch.equal(model.encoder.model.bn1.running_mean, statistics)  # the trial leaves no trace
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(model(x).detach(), before)

    seen = []
    compiled = torch.nn.Module.compile
    eager = {"backend": lambda graph, _: seen.append(graph) or graph}
    monkeypatch.setattr(model, "compile", lambda: compiled(model, **eager))
    compile_model(model, x)
    assert seen
    assert capsys.readouterr().err == ""
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x).detach(), before)
