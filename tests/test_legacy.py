"""Files that 5bc99b0 wrote are read; see tests/legacy/README.md."""

import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from glacier_fastai.data.tiles import TileStore
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.calibrate import calibrate
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.evaluate import evaluate, predict_tiles, tiles_to_score
from glacier_fastai.model.oof import OutOfFold
from glacier_fastai.recipe import load_recipe
from glacier_fastai.show.report import write_report
from glacier_fastai.train.checkpoint import load_checkpoint
from glacier_fastai.train.run import train

LEGACY = Path(__file__).parent / "legacy"


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    """The folder, with what is small unpacked."""
    where = tmp_path_factory.mktemp("legacy") / "files"
    shutil.copytree(LEGACY, where, ignore=shutil.ignore_patterns("*.xz", "make.py", "README.md"))
    for file in LEGACY.rglob("*.safetensors.xz"):
        (where / file.relative_to(LEGACY).with_suffix("")).write_bytes(lzma.decompress(file.read_bytes()))
    return where


@pytest.fixture(scope="module")
def expected(legacy):
    with np.load(legacy / "expected.npz") as file:
        return dict(file)


def same_scores(found, text):
    want = json.loads(str(text))
    assert np.abs(np.array(found["confusion"]) - np.array(want["confusion"])).sum() <= 8  # pixels between two classes
    assert found["mcc"] == pytest.approx(want["mcc"], abs=2e-3)


def test_a_store_has_the_same_tiles(legacy, expected):
    store = TileStore(legacy / "store")
    assert store.keys() == expected["keys"].tolist()
    assert store.fingerprint() == str(expected["fingerprint"]) == "68428d4b4818345a"


@pytest.mark.parametrize("name", ["bundle", "bundle_texture"])
def test_a_bundle_says_the_same(legacy, expected, name):
    bundle, store = ModelBundle.load(legacy / f"{name}.safetensors"), TileStore(legacy / "store")
    assert bundle.arch == "unet" and bundle.options["encoder"] == "resnet18"
    found = list(predict_tiles(bundle, store, expected["tiles"].tolist(), torch.device("cpu")))
    np.testing.assert_allclose([t.probs for t in found], expected[f"{name}_probabilities"], atol=1e-3)
    same_scores(evaluate(bundle, store), expected[f"{name}_evaluate"])
    assert tiles_to_score(bundle, store)[1] == "the 4 tiles of fold 0"
    bundle.save(legacy / "again.safetensors")
    again = ModelBundle.load(legacy / "again.safetensors")
    assert again.trained_on == bundle.trained_on and again.recipe == bundle.recipe


def test_an_ensemble_and_out_of_fold_predictions_say_the_same(legacy, expected, tmp_path):
    ensemble, store = Ensemble.load([legacy / "crossval" / "ensemble.yaml"]), TileStore(legacy / "store")
    assert (ensemble.calibration.temperature, ensemble.calibration.area) == (1.5, (-1.25, 1.5))
    assert ensemble.calibration.glacier is None
    found = list(predict_tiles(ensemble, store, expected["tiles"].tolist()))
    np.testing.assert_allclose([t.probs for t in found], expected["ensemble_probabilities"], atol=1e-3)
    assert (np.stack([t.classes for t in found]) != expected["ensemble_classes"]).sum() <= 4
    same_scores(evaluate(ensemble, store), expected["ensemble_evaluate"])
    oof = OutOfFold(legacy / "crossval")
    assert len(oof.table) == 12 and oof.stale() is None
    want = json.loads(str(expected["calibrate"]))
    assert calibrate([legacy / "crossval"], tmp_path / "again.yaml")["nll"] == pytest.approx(want["nll"], abs=1e-3)


def test_a_checkpoint_without_checksums_is_read(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(lzma.decompress((LEGACY / "last.ckpt.xz").read_bytes()))
    assert load_checkpoint(path)["at"] == (1, 0)


@pytest.mark.slow
def test_a_run_is_resumed_and_reported(legacy, expected):
    run = legacy / "run"
    (run / "last.ckpt").write_bytes(lzma.decompress((LEGACY / "last.ckpt.xz").read_bytes()))
    train(load_recipe(run / "recipe.yaml"), legacy / "store", run, fold=0, resume=True)
    assert load_checkpoint(run / "last.ckpt")["at"] == (2, 0)
    history = pd.read_csv(run / "history.csv")
    want = pd.read_csv(LEGACY / "run" / "history.csv")
    pd.testing.assert_frame_equal(history[want.columns][:1], want)  # the first epoch is that of the file
    assert history["epoch"].tolist() == [1, 2] and np.isfinite(history["train_loss"]).all()
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["start", "epoch", "stop", "resume", "epoch"]
    write_report([run], legacy / "report.html")
    assert "resnet18" in (legacy / "report.html").read_text()
