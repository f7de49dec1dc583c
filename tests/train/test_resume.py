"""Runs that are stopped, killed and resumed, as a user meets them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from learners import assert_same
from scenes import make_store, tiny_recipe

from glacier_fastai.errors import CheckpointError, OutputError, RunStopped, TrainingError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.train import run as runs
from glacier_fastai.train.checkpoint import load_checkpoint
from glacier_fastai.train.run import crossval, finetune, train
from glacier_fastai.train.steps import GradientGuard

TESTS = Path(__file__).resolve().parents[1]
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
    "CUDA_VISIBLE_DEVICES": "",
}


def assert_same_run(a, b):
    """Assert that two runs have the same history, scores, weights and all that a checkpoint holds."""
    for name in ("history.csv", "metrics.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert_same(load_checkpoint(a / "last.ckpt"), load_checkpoint(b / "last.ckpt"))
    one, other = (vars(ModelBundle.load(run / "best.safetensors")) for run in (a, b))
    for about in (one, other):
        del about["recipe"]["train"]["max_minutes"]  # decides nothing
    assert_same(one, other)


@pytest.mark.slow
def test_a_run_killed_at_least_20_times_is_the_run_that_was_never_stopped(tmp_path):
    store = make_store(tmp_path / "store")
    helper = [sys.executable, "-W", "ignore", str(TESTS / "killed_runs.py"), str(store.path), str(tmp_path), "22", "3"]
    done = subprocess.run(helper, env=ENV, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    fell = json.loads(done.stdout)
    print(f"\n{len(fell)} times kill -9: {', '.join(f'{fell.count(p)} in {p}' for p in dict.fromkeys(fell))}")
    assert len(fell) >= 20
    assert {"batch", "save", "validation"} <= set(fell)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.partial"))
    events = [json.loads(line) for line in (tmp_path / "killed" / "events.jsonl").read_text().splitlines()]
    assert sum(e["event"] == "resume" for e in events) >= 15  # a kill before the first batch leaves nothing to resume


# by the command line

SMALL = [
    "model.size=tiny",
    "record.panels_every=0",
    "data.tile_size=32",
    "data.crop=16",
    "data.folds=3",
    "data.crops_per_tile=6",
    "train.batch_size=4",
]
LONG = [word for item in [*SMALL, "train.precision=fp32"] for word in ("--set", item)]


class Command:
    """`glacier-fastai` in a process of its own, whose messages can be waited for."""

    def __init__(self, *words, log):
        self.log = log
        with open(log, "w") as file:
            command = [sys.executable, "-u", "-m", "glacier_fastai", *map(str, words)]
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=ENV, start_new_session=True)

    @property
    def said(self):
        return self.log.read_text()

    def wait_for(self, text):
        deadline = time.monotonic() + 120
        while text not in self.said:
            assert self.process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def end(self):
        return self.process.wait(timeout=120)


def words(store, out, *more):
    return ["finetune", "--recipe", "demo", "--data", store.path, "--out", out, *LONG, "--set", "train.epochs=4", *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store, and a run on it that was never stopped."""
    base = tmp_path_factory.mktemp("whole")
    store = make_store(base / "store")
    command = Command(*words(store, base / "run"), log=base / "log")
    assert command.end() == 0, command.said
    return store, base / "run"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(whole, tmp_path, number):
    store, out = whole[0], tmp_path / "run"
    command = Command(*words(store, out), log=tmp_path / "log")
    command.wait_for("epoch 2/4")
    command.process.send_signal(number)
    assert command.end() == 75
    name, last = signal.Signals(number).name, command.said.splitlines()[-1]
    print("\n" + "\n".join(command.said.splitlines()[-2:]))
    assert f"{name}: stopping after this batch" in command.said
    assert last.startswith(f"glacier-fastai: stopped by {name}; all is saved in {out / 'last.ckpt'}; ")
    assert last.endswith("--resume")
    assert "Traceback" not in command.said
    # the very words it gives
    again = Command(*last.partition("go on, with glacier-fastai ")[2].split(), log=tmp_path / "again")
    assert again.end() == 0, again.said
    assert re.search(r"resumed  after (batch \d+ of epoch 3|epoch 2)", again.said)
    assert_same_run(whole[1], out)
    events = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert events == ["start", "epoch", "epoch", "stop", "resume", "epoch", "epoch"]


@pytest.mark.slow
def test_a_second_ctrl_c_loses_nothing_older_than_the_last_save(whole, tmp_path):
    store, out = whole[0], tmp_path / "run"
    command = Command(*words(store, out), log=tmp_path / "log")
    command.wait_for("epoch 1/4")
    while not (out / "last.ckpt").exists():
        time.sleep(0.01)
    command.process.send_signal(signal.SIGINT)
    command.wait_for("SIGINT: stopping")
    command.process.send_signal(signal.SIGINT)
    assert command.end() in (130, 75), command.said  # 75 where the batch ended before the second came
    assert load_checkpoint(out / "last.ckpt")["at"] >= (1, 0)
    again = Command(*words(store, out, "--resume"), log=tmp_path / "again")
    assert again.end() == 0, again.said
    assert_same_run(whole[1], out)


def test_a_run_folder_that_is_in_use_is_left_alone(trained, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "figures").mkdir()
    with FileLock(out / ".lock"):
        command = Command(*words(trained[1], out, "--resume"), log=tmp_path / "log")
        assert command.end() == 2
    assert (
        command.said
        == f"glacier-fastai: {out}: in use by another process; wait until it ends, or choose another folder\n"
    )
    assert sorted(p.name for p in out.iterdir()) == [".lock", "figures"]


# in Python


def copy_of(trained, tmp_path):
    return Path(shutil.copytree(trained[0], tmp_path / "run")), trained[1]


@pytest.mark.slow
def test_max_minutes_saves_stops_and_goes_on(tmp_path, capsys):
    store = make_store(tmp_path / "s").path
    recipe, other = (tiny_recipe("train.epochs=3", f"train.max_minutes={m}") for m in (1e-6, 60))
    stops = 0
    while stops < 20:
        try:
            finetune(recipe, fold=0, data=store, out=tmp_path / "run", resume=stops > 0)
            break
        except RunStopped as err:
            stops += 1
            says = f"stopped by train.max_minutes=1e-06; all is saved in {tmp_path / 'run' / 'last.ckpt'}; "
            assert str(err).startswith(says)
            assert err.exit_code == 75
    assert stops >= 6  # one batch at a time
    train(other, store, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_knows_places_goes_on_with_the_same_draws_of_unknown_ones(tmp_path):
    store, small = make_store(tmp_path / "s", placed=True).path, "{arch: glavitu, size: tiny, options: {dropout: 0.1}}"
    bands = "bands=[red, swir1, latitude, longitude]"
    recipe, other = (tiny_recipe(bands, f"model={small}", f"train.max_minutes={m}") for m in (1e-6, 60))
    stops = 0
    while stops < 20:
        try:
            finetune(recipe, fold=0, data=store, out=tmp_path / "run", resume=stops > 0)
            break
        except RunStopped:
            stops += 1
    assert stops >= 4
    train(other, store, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_another_recipe_fold_or_data_is_refused_with_what_differs(trained, tmp_path):
    run, store = copy_of(trained, tmp_path)
    other = make_store(tmp_path / "other", seed=9)

    def refused(match, recipe, data=store, fold=0, weights=None):
        with pytest.raises(CheckpointError, match=match) as err:
            finetune(recipe, data.path, run, fold=fold, weights=weights, resume=True)
        assert "resume it with the same settings, or choose another folder" in str(err.value)

    refused(r"\(recipe\.train\.lr: 0\.001 there, 0\.002 here\)", tiny_recipe("train.lr=2e-3"))
    refused(r"recipe\.train\.epochs: 2 there, 3 here", tiny_recipe("train.epochs=3"))
    refused(r"\(fold: 0 there, 1 here\)", tiny_recipe(), fold=1)
    refused(r"tiles: \w+ there, \w+ here", tiny_recipe(), other)
    refused(r"weights: None there, \w+ here", tiny_recipe(), weights=run / "best.safetensors")
    assert_same_run(trained[0], run)


def test_what_changes_nothing_may_differ(trained, tmp_path, caplog):
    caplog.set_level("INFO")
    run, store = copy_of(trained, tmp_path)
    recipe = tiny_recipe("train.workers=0", "train.max_minutes=60", "record.keep=3", "about=again", "data.path=x")
    train(recipe, store.path, run, resume=True)
    assert f"{run}: its training has ended already" in caplog.text
    assert_same_run(trained[0], run)


def test_a_run_that_ended_gets_its_figures_again(trained, tmp_path):
    run, store = copy_of(trained, tmp_path)
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "figures")
    (run / "figures").mkdir()
    train(tiny_recipe(), store.path, run, resume=True)
    assert_same_run(trained[0], run)
    assert sorted(p.name for p in (run / "figures").iterdir()) == ["batch.png", "results.png"]


def test_the_model_of_another_fold_is_not_taken_for_this_runs(trained, crossvalidated, tmp_path):
    run, store = copy_of(trained, tmp_path)
    before = (run / "metrics.json").read_bytes()
    shutil.copy(crossvalidated[0] / "fold1" / "best.safetensors", run)
    with pytest.raises(CheckpointError, match=r"best\.safetensors: is of another run, for it was validated on other"):
        train(tiny_recipe(), store.path, run, resume=True)
    assert (run / "metrics.json").read_bytes() == before


def test_resume_without_a_run_starts_one(trained, tmp_path):
    train(tiny_recipe(), trained[1].path, tmp_path / "run", resume=True)
    assert_same_run(trained[0], tmp_path / "run")


def test_no_run_folder_is_refused(trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for out, match in (
        (tmp_path / "mine", "mine: not a run folder"),
        (tmp_path / "mine" / "thesis.txt", "txt: not a run folder"),
    ):
        with pytest.raises(OutputError, match=match):
            train(tiny_recipe(), trained[1].path, out, resume=True)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_checkpoint_cut_short_is_refused_and_left(trained, tmp_path):
    run, store = copy_of(trained, tmp_path)
    data = (run / "last.ckpt").read_bytes()[:1000]
    (run / "last.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: no checkpoint, or cut short"):
        train(tiny_recipe(), store.path, run, resume=True)
    assert (run / "last.ckpt").read_bytes() == data
    shutil.copy(trained[0] / "last.ckpt", run / "last.ckpt")
    train(tiny_recipe(), store.path, run, resume=True)


@pytest.mark.slow
def test_crossval_goes_on_with_the_fold_it_was_in(tmp_path, monkeypatch):
    store, recipe = make_store(tmp_path / "s").path, tiny_recipe("train.epochs=1")
    crossval(recipe, data=store, out=tmp_path / "whole")
    inner = runs.train

    def stopped(recipe, store, out, *, fold, **kwargs):
        if fold == 1:
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_minutes": 1e-6})})
        return inner(recipe, store, out, fold=fold, **kwargs)

    monkeypatch.setattr(runs, "train", stopped)
    with pytest.raises(RunStopped):
        crossval(recipe, data=store, out=tmp_path / "cv")
    monkeypatch.setattr(runs, "train", inner)
    with pytest.raises(OutputError, match="cv: exists already; choose another folder"):
        crossval(recipe, data=store, out=tmp_path / "cv")
    crossval(recipe, data=store, out=tmp_path / "cv", resume=True)
    table = pd.read_csv(tmp_path / "cv" / "crossval.csv")
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "whole" / "crossval.csv"))
    for fold in range(3):
        assert_same_run(tmp_path / "whole" / f"fold{fold}", tmp_path / "cv" / f"fold{fold}")


def test_out_of_memory_names_what_to_lower(trained, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(GradientGuard, "after_loss", full)
    says = (
        r"out of memory on cpu with train\.batch_size=4, data\.crop=32, train\.accumulate=1: lower one of the first two"
    )
    with pytest.raises(TrainingError, match=says):
        train(tiny_recipe(), trained[1].path, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing was saved, so nothing is left


def test_an_unwritable_place_is_named(trained):
    with pytest.raises(PermissionError, match="/sys/kernel/run"):  # not even root makes folders there
        train(tiny_recipe(), trained[1].path, "/sys/kernel/run")
