import errno
import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastai.callback.core import Callback
from scenes import changed, make_store, tiny_recipe, write_scene
from torch import nn

from glacier_fastai.bands import CLASSES
from glacier_fastai.data.folds import folds_hash
from glacier_fastai.errors import BundleError, DataError, DataNote, OutputError, RecipeError, TrainingError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.evaluate import evaluate
from glacier_fastai.model.registry import register_model
from glacier_fastai.predict.scene import predict_scene
from glacier_fastai.recipe import load_recipe
from glacier_fastai.show.report import write_report
from glacier_fastai.train import run as runs
from glacier_fastai.train.build import make_callbacks, make_dls, make_learner
from glacier_fastai.train.folder import RunFolder
from glacier_fastai.train.run import crossval, finetune, pretrain, train


def test_the_run_folder_holds_what_the_design_says(trained):
    run, store = trained
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    events = {f for f in files if f.startswith("tensorboard/events.out.tfevents")}
    assert len(events) == 1
    assert files - events == {
        "last.ckpt",
        "events.jsonl",
        "recipe.yaml",
        "environment.json",
        "folds.csv",
        "history.csv",
        "best.safetensors",
        "best.stac.json",
        "MODEL_CARD.md",
        "metrics.json",
        "figures/batch.png",
        "figures/results.png",
    }
    assert load_recipe(run / "recipe.yaml") == tiny_recipe()
    folds = pd.read_csv(run / "folds.csv")
    assert folds["part"].value_counts().to_dict() == {"train": 8, "valid": 4}
    assert set(folds["id"]) == set(store.table["id"])
    assert (folds.loc[folds["part"] == "valid", "fold"] == 0).all()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"]
    trained_on = ModelBundle.load(run / "best.safetensors").trained_on
    assert environment["folds_hash"] == trained_on.folds_hash == folds_hash(store, folds["fold"])
    for part in ("train", "valid"):
        assert [k for k, p in zip(store.keys(), folds["part"], strict=True) if p == part] == list(
            getattr(trained_on, part)
        )


def test_the_history_has_a_row_per_epoch_with_every_column(trained):
    table = pd.read_csv(trained[0] / "history.csv")
    assert table["epoch"].tolist() == [1, 2]
    wanted = {
        "train_loss",
        "valid_loss",
        "mcc",
        "train_mcc",
        "mean_iou",
        "ice_mcc",
        "focal_loss",
        "train_boundary_loss",
    }
    assert wanted | {"ramp_boundary", "lr"} <= set(table)
    assert not table.isna().any().any()


def test_the_bundle_is_the_best_epoch_and_its_scores_are_on_record(trained):
    run, store = trained
    bundle = ModelBundle.load(run / "best.safetensors")
    history, record = pd.read_csv(run / "history.csv"), json.loads((run / "metrics.json").read_text())
    best = history.loc[history["mcc"].idxmax()]
    assert record["epoch"] == bundle.metrics["epoch"] == best["epoch"]
    assert {**bundle.metrics, "notes": []} == record  # of weights in half precision, those of the history are not
    assert record["mcc"] == pytest.approx(best["mcc"], abs=0.01)
    valid = pd.read_csv(run / "folds.csv").query("part == 'valid'").index
    found = evaluate(bundle, store, valid)  # beside it, tells where the tiles are unlike those trained on
    assert {"epoch": record["epoch"], **found, "notes": []} == record
    assert bundle.trained_on.fold == 0
    assert bundle.recipe == tiny_recipe().model_dump(mode="json")


def test_a_store_prepared_anew_while_a_run_uses_it_changes_no_score(tmp_path, monkeypatch):
    path, fit = make_store(tmp_path / "s").path, runs._fit
    recipe = tiny_recipe("bands=[blue,red,glcm_contrast(swir1)]", "train.epochs=1")
    finetune(recipe, path, tmp_path / "quiet", fold=0)

    def disturbed(*args):
        fit(*args)
        shutil.rmtree(path)
        make_store(path, seed=1)

    monkeypatch.setattr(runs, "_fit", disturbed)
    finetune(recipe, path, tmp_path / "disturbed", fold=0)
    quiet, found = ((tmp_path / run / "metrics.json").read_bytes() for run in ("quiet", "disturbed"))
    assert quiet == found


@pytest.mark.slow
def test_where_ice_has_no_kind_the_score_of_ice_is_watched_and_all_ice_is_glacier(blind):
    run, store = blind[0] / "fold0", blind[1]
    bundle, record = ModelBundle.load(run / "best.safetensors"), json.loads((run / "metrics.json").read_text())
    history = pd.read_csv(run / "history.csv")
    assert not bundle.tells_debris
    assert record["epoch"] == bundle.metrics["epoch"] == history.loc[history["ice_mcc"].idxmax(), "epoch"]
    assert record["ice_mcc"] == pytest.approx(history["ice_mcc"].max(), abs=0.01)  # of weights in half precision
    assert bundle.metrics == {k: v for k, v in record.items() if k != "notes"}  # these name the folder
    assert len(record["confusion"]) == 5 and not np.array(record["confusion"])[:, 2].any()
    assert record["ice"]["pixels"] == store.ice_counts()[bundle.trained_on.knows(store, "valid")].sum() > 0
    assert history["share_ice"].between(0.2, 0.8).all()
    said = json.loads((run / "events.jsonl").read_text().splitlines()[0])["notes"]
    assert any(n.endswith("so the MCC of ice tells which model is best, not that of the classes") for n in said)
    assert any("100% of its ice is of unknown kind" in n for n in said)
    assert any("no label tells debris from clean ice, so the model will map all ice as glacier" in n for n in said)
    card = (run / "MODEL_CARD.md").read_text()
    assert "**It does not tell debris from clean ice**" in card
    assert re.search(r"debris 0\.00%, lake \d\.\d\d%, ice, kind unknown \d\d\.\d\d%", card)


def test_what_watches_watches_ice_where_it_has_no_kind(tmp_path):
    recipe = tiny_recipe("train.early_stop=3")
    for kinds, name in ((True, "mcc"), (False, "ice_mcc")):
        store = make_store(tmp_path / name, kinds=kinds)
        learn = make_learner(recipe, make_dls(recipe, store, 0))
        folder = RunFolder(tmp_path / f"{name}-run")
        folder.path.mkdir()
        cbs = make_callbacks(recipe, learn, folder, {}, None, 0.0, store, 0)
        assert {cb.monitor for cb in cbs if hasattr(cb, "monitor")} == {name}
        assert sum(hasattr(cb, "monitor") for cb in cbs) == 3


@pytest.mark.parametrize("start", ["blind", "trained"])
@pytest.mark.parametrize("kinds", [True, False])
def test_kinds_are_told_by_the_tiles_or_by_the_weights(blind, trained, tmp_path, start, kinds):
    weights = (blind[0] / "fold0" if start == "blind" else trained[0]) / "best.safetensors"
    store = make_store(tmp_path / "s", kinds=kinds)
    run = finetune(tiny_recipe("train.epochs=1"), store, tmp_path / "run", weights=weights)
    assert ModelBundle.load(run / "best.safetensors").tells_debris == (kinds or start == "trained")


def test_the_console_tells_of_ice_where_that_is_watched(tmp_path, capsys):
    with pytest.warns(DataNote, match="100% of its ice is of unknown kind"):
        finetune(tiny_recipe(), make_store(tmp_path / "s", kinds=False), tmp_path / "run")
    said = capsys.readouterr().err
    assert re.search(r"epoch 1/2  loss \d\.\d{4} / \d\.\d{4}  ice MCC -?\d\.\d{4}  mean IoU", said)
    assert re.search(r"\nIce +\d\.\d{4}", said)


def test_the_console_says_what_is_run_and_how_it_goes(tmp_path, capsys):
    finetune(tiny_recipe(), fold=1, data=make_store(tmp_path / "s").path, out=tmp_path / "run")
    text = capsys.readouterr()
    assert text.out == ""
    for word in (
        "recipe",
        "seed     42",
        "device   cpu, fp32",
        "parameters",
        "batches  2 per epoch of 4 crops of 32 px",
    ):
        assert word in text.err
    line = r"epoch 1/2  loss \d\.\d{4} / \d\.\d{4}  MCC -?\d\.\d{4} / -?\d\.\d{4}  mean IoU .* lr 1\.0e-03"
    assert re.search(line, text.err)
    assert re.search(r"Class +IoU +Prec +Recall +F1\nBG .*\nGlacier .*\nDebris .*\nLake .*\nMean ", text.err)
    assert "\r" not in text.err
    assert "best     epoch" in text.err


@pytest.mark.slow
def test_a_balanced_run_says_what_it_expects_and_records_what_came(tmp_path, capsys):
    recipe = tiny_recipe("balance.level=pixel", "data.crop=16", "data.crops_per_tile=20")
    run = finetune(recipe, fold=1, data=make_store(tmp_path / "s").path, out=tmp_path / "run")
    text = capsys.readouterr().err
    assert "balance  of background / glacier / debris / lake" in text
    assert re.search(r"balance  target +10\.00% / 35\.00% / 40\.00% / 15\.00%", text)
    assert re.search(r"balance  expected, before augmentation +10\.00% / 35\.00% / 40\.00% / 15\.00%", text)
    assert re.search(r"balance  effective sample size \d+% of that of even drawing", text)
    history = pd.read_csv(run / "history.csv")
    shares = history[[f"share_{name}" for name in CLASSES]].mean()
    assert list(shares) == pytest.approx([0.10, 0.35, 0.40, 0.15], abs=0.06)


def test_the_same_recipe_gives_the_same_run(tmp_path):
    store = make_store(tmp_path / "s").path
    recipes = [tiny_recipe("balance.level=crop", "data.crop=16", "augment=heavy", f"train.workers={n}") for n in (0, 3)]
    runs = [finetune(r, fold=0, data=store, out=tmp_path / f"run{k}") for k, r in enumerate(recipes)]
    a, b = ((run / "history.csv").read_bytes() for run in runs)
    assert a == b


@pytest.mark.slow
def test_a_run_makes_the_steps_that_are_asked_for_whatever_the_number_of_tiles(tmp_path, capsys):
    class Count(Callback):
        made = 0

        def after_step(self):
            self.made += 1

    more = ["train.epochs=null", "train.steps=53", "train.accumulate=2", "train.warmup=0.1", "train.decay=0.5"]
    run = train(tiny_recipe(*more), make_store(tmp_path / "s"), tmp_path / "run", cbs=[count := Count()])
    assert count.made == 54
    said = capsys.readouterr().err
    assert "batches  54 per epoch of 4 crops" in said
    assert "steps    54 in 2 epochs of 27, 53 rounded up" in said
    assert pd.read_csv(run / "history.csv")["lr"].tolist() == pytest.approx([1e-3, 1e-3 / 54])
    assert json.loads((run / "events.jsonl").read_text().splitlines()[0])["notes"] == []


def test_epochs_of_few_steps_are_said(tmp_path):
    with pytest.warns(DataNote, match=r"s: an epoch makes 2 optimiser steps, 4 in all; train\.steps in place of"):
        run = train(tiny_recipe(), make_store(tmp_path / "s"), tmp_path / "run")
    notes = json.loads((run / "events.jsonl").read_text().splitlines()[0])["notes"]
    assert len(notes) == 1 and "an epoch makes 2 optimiser steps" in notes[0]


def test_a_balance_of_classes_that_are_not_there_is_said(tmp_path):
    store = changed(make_store(tmp_path / "a"), tmp_path / "s", mask=lambda codes: np.where(codes % 255, 1, codes))
    recipe = tiny_recipe("train.epochs=1", "data.crop=16", "balance.level=crop")
    with pytest.warns(DataNote, match="s: no training tile has debris, lake: the other classes share its part"):
        run = finetune(recipe, fold=2, data=store.path, out=tmp_path / "run")
    events = (run / "events.jsonl").read_text()
    assert "no training tile has debris, lake" in events.splitlines()[0]


def test_weights_that_were_trained_on_what_is_validated_on_are_said(trained, tmp_path):
    run, store = trained
    weights, recipe = run / "best.safetensors", tiny_recipe("train.epochs=1")
    fold = ModelBundle.load(weights).trained_on.fold
    with pytest.warns(DataNote, match="validation tiles are among those that .*best.safetensors was trained on"):
        other = train(recipe, store, tmp_path / "other", fold=(fold + 1) % 3, weights=weights)
    assert "so their scores flatter" in (other / "events.jsonl").read_text().splitlines()[0]
    for name, which in (("same", fold), ("all", None)):
        same = train(recipe, store, tmp_path / name, fold=which, weights=weights)
        assert "flatter" not in (same / "events.jsonl").read_text()


def test_pretrain_then_finetune_with_other_bands(tmp_path, capsys):
    pre = pretrain(tiny_recipe("train.epochs=1"), make_store(tmp_path / "a").path, tmp_path / "pre")
    recipe = tiny_recipe("train.epochs=1", "bands=[red, nir, blue]")
    data = make_store(tmp_path / "b", ("nir", "red", "blue"))
    run = finetune(recipe, data.path, tmp_path / "fine", fold=0, weights=pre / "best.safetensors")
    assert ModelBundle.load(run / "best.safetensors").bands == ("red", "nir", "blue")
    assert "first convolution: red, blue kept; nir start from the mean" in capsys.readouterr().err


def test_fold_all_trains_on_everything_and_keeps_the_last(tmp_path):
    data = make_store(tmp_path / "s")
    run = finetune(tiny_recipe(), fold=None, data=data.path, out=tmp_path / "run")
    bundle = ModelBundle.load(run / "best.safetensors")
    assert bundle.trained_on.fold is None
    assert bundle.metrics == {}
    assert (pd.read_csv(run / "folds.csv")["part"] == "train").all()
    assert not (run / "metrics.json").exists()
    history = pd.read_csv(run / "history.csv")
    assert len(history) == 2
    assert "mcc" not in history
    assert "train_mcc" in history


@pytest.mark.slow
def test_crossval_trains_every_fold(tmp_path, capsys):
    recipe = tiny_recipe("train.epochs=1")
    out = crossval(recipe, data=make_store(tmp_path / "s").path, out=tmp_path / "cv")
    table = pd.read_csv(out / "crossval.csv")
    assert table["fold"].tolist() == [0, 1, 2]
    for k in range(3):
        assert table["mcc"][k] == json.loads((out / f"fold{k}" / "metrics.json").read_text())["mcc"]
    assert re.search(r"mcc +-?\d\.\d+ \+- \d\.\d+ over 3 folds", capsys.readouterr().err)


def test_the_same_recipe_gives_the_same_weights(tmp_path):
    data = make_store(tmp_path / "s").path
    recipe = tiny_recipe("train.epochs=2", "data.crop=16", "train.ema=0.5", "augment.rotate=20")
    a, b = (ModelBundle.load(train(recipe, data, tmp_path / n) / "best.safetensors") for n in "ab")
    assert all((a.weights[k] == b.weights[k]).all() for k in a.weights)


class Counted(Callback):
    """A user's own."""

    def before_fit(self):
        self.batches = 0

    def after_batch(self):
        self.batches += self.training


def test_a_run_takes_further_callbacks(tmp_path):
    mine = Counted()
    train(tiny_recipe(), make_store(tmp_path / "s"), tmp_path / "run", cbs=[mine])
    assert mine.batches == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.arch=fpn",),
        ("model.arch=width_only", "model.size=null", "model.options={width: 5}"),
    ],
)
def test_any_network_goes_all_the_way(tmp_path, overrides):
    """Trained, cross-validated, calibrated, evaluated, mapped and reported."""
    register_model("width_only", width_only)
    recipe = tiny_recipe("train.epochs=1", "data.folds=2", *overrides)
    store = make_store(tmp_path / "s")
    out = crossval(recipe, store, tmp_path / "cv")
    ensemble = Ensemble.load([out / "ensemble.yaml"])
    assert [m.bundle.arch for m in ensemble.members] == [recipe.model.arch] * 2
    assert np.isfinite(evaluate(ensemble, store)["mcc"])
    scene, _ = write_scene(tmp_path / "scene.tif")
    assert Path(predict_scene(ensemble, scene, tmp_path / "maps")["files"]["classes"]).exists()
    write_report([out], tmp_path / "report.html")
    assert recipe.model.arch in (tmp_path / "report.html").read_text()


def width_only(bands, classes, width=3):
    return nn.Sequential(nn.Conv2d(len(bands), width, 3, padding=1), nn.Conv2d(width, len(classes), 1))


def test_early_stopping_accumulation_and_no_clipping(tmp_path, capsys):
    recipe = tiny_recipe(
        "train.epochs=9", "train.early_stop=1", "train.accumulate=2", "train.clip=0", "train.lr=1e-9", "train.ema=0"
    )
    run = finetune(recipe, fold=0, data=make_store(tmp_path / "s").path, out=tmp_path / "run")
    assert len(pd.read_csv(run / "history.csv")) < 9
    said = capsys.readouterr()
    assert "early stopping" in said.err  # fastai prints it to stdout, where only results belong
    assert said.out == ""


def refuse(error, message, tmp_path, recipe, **kwargs):
    with pytest.raises(error, match=message) as err:
        finetune(recipe, **{"fold": 0, "out": tmp_path / "run", **kwargs})
    assert "\n" not in str(err.value)
    assert not (tmp_path / "run").exists()


def test_refusals_leave_nothing_behind(tmp_path):
    data = make_store(tmp_path / "s").path
    recipe = tiny_recipe()
    refuse(DataError, "no data: name a tile store or a raw folder", tmp_path, recipe)
    refuse(DataError, "neither a tile store", tmp_path, recipe, data=tmp_path)
    refuse(DataError, "fold 9: there are folds 0 to 2", tmp_path, recipe, data=data, fold=9)
    refuse(DataError, "no band nir; it holds", tmp_path, tiny_recipe("bands=[red, nir]"), data=data)
    big = tiny_recipe("data.tile_size=64", "data.crop=64")
    refuse(DataError, "crop 64 is larger than its tiles of 32 px", tmp_path, big, data=data)
    refuse(BundleError, "no such file", tmp_path, recipe, data=data, weights=tmp_path / "x.safetensors")
    lone = tiny_recipe("train.batch_size=1")
    refuse(RecipeError, "a single crop of 32 px cannot be normalised", tmp_path, lone, data=data)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        train(recipe, data, tmp_path / "file" / "run")
    half = tiny_recipe("train.precision=fp16")
    refuse(RecipeError, "fp16 needs a CUDA GPU", tmp_path, half, data=data)
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="there: exists already"):
        train(recipe, data, tmp_path / "there")
    with pytest.raises(OutputError, match="there: exists already"):
        crossval(recipe, data=data, out=tmp_path / "there")


def test_a_run_that_diverges_ends_as_a_failure(tmp_path):
    recipe = tiny_recipe("train.lr=1e30", "train.clip=0", "train.ema=0", "train.epochs=3")
    with pytest.raises(TrainingError, match=r"the loss is not finite after epoch 1; lower train\.lr"):
        train(recipe, make_store(tmp_path / "s").path, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_run_that_fails_before_it_saves_leaves_no_folder(tmp_path):
    class Fails(Callback):
        def before_batch(self):
            raise DataError("refused")

    with pytest.raises(DataError, match="refused"):
        train(tiny_recipe(), make_store(tmp_path / "s").path, tmp_path / "runs" / "a" / "run", cbs=[Fails()])
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_drive_without_locks_is_trained_on(tmp_path, monkeypatch):
    def flock(fd, operation):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr("glacier_fastai.files._lockless", set())
    with pytest.warns(DataNote, match="this drive has no locks"):
        store = make_store(tmp_path / "s")
    run = train(tiny_recipe("train.epochs=1"), store.path, tmp_path / "run")
    assert (run / "best.safetensors").exists() and not (run / ".lock").exists()


def test_another_architecture_than_the_bundles_is_refused(trained, tmp_path):
    recipe = tiny_recipe("model.encoder=resnet18")
    refuse(
        BundleError,
        "set model.arch=.unet., model.encoder=.tu-test_resnet",
        tmp_path,
        recipe,
        data=trained[1].path,
        weights=trained[0] / "best.safetensors",
    )
