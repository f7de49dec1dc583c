import json
import math
import os
import platform
import subprocess
import sys
from importlib.metadata import version

import pandas as pd
import pytest
from fastai.callback.core import Callback
from learners import small_learner
from scenes import tiny_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glacier_fastai.bands import CLASSES
from glacier_fastai.errors import OutputError, RecipeError
from glacier_fastai.train import record
from glacier_fastai.train.record import EventLog, EventsCallback, HistoryCallback, TensorBoardRecord, environment
from glacier_fastai.train.run import train
from glacier_fastai.train.steps import GradientGuard


def events(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_tensorboard_has_every_column_the_classes_and_the_pictures(trained):
    run, _ = trained
    record = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = set(record.Tags()["scalars"])
    print(
        "\n"
        + "\n".join(
            f"{kind}: {', '.join(map(str, sorted(t)))}" for kind, t in record.Tags().items() if t and t is not True
        )
    )
    wanted = {"loss/train", "loss/valid", "mcc/train", "mcc/valid", "ice_mcc/valid", "lr", "ramp/boundary"}
    wanted |= {f"{part}_loss/{phase}" for part in ("focal", "dice", "mcc", "boundary") for phase in ("train", "valid")}
    wanted |= {f"share/{c}" for c in CLASSES}
    wanted |= {f"{kind}/{c}" for kind in ("iou", "precision", "recall", "f1") for c in CLASSES}
    assert wanted <= tags
    history = pd.read_csv(run / "history.csv")
    for tag, column in (
        ("mcc/valid", "mcc"),
        ("loss/train", "train_loss"),
        ("lr", "lr"),
        ("ramp/boundary", "ramp_boundary"),
    ):
        values = record.Scalars(tag)
        assert [v.step for v in values] == [1, 2]
        assert [v.value for v in values] == pytest.approx(history[column].tolist(), rel=1e-5)
    assert "Debris" in record.Tensors("classes/text_summary")[0].tensor_proto.string_val[0].decode()


def test_pictures_of_tiles_come_every_so_many_epochs_and_last(tmp_path):
    small_learner(tmp_path / "s").fit(3, 1e-3, cbs=TensorBoardRecord(tmp_path / "tb", 2))
    record = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0}).Reload()
    assert [e.step for e in record.Images("tiles")] == [2, 3]


def test_epochs_that_come_again_replace_those_of_before(tmp_path):
    learn = small_learner(tmp_path / "s")
    learn.fit(4, 1e-3, cbs=TensorBoardRecord(tmp_path / "tb", 0))
    learn.first_epoch = 2
    learn.fit(4, 1e-3, cbs=TensorBoardRecord(tmp_path / "tb", 0))
    record = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [v.step for v in record.Scalars("mcc/valid")] == [1, 2, 3, 4]


def test_the_history_has_no_row_twice_after_it_was_resumed(tmp_path):
    learn, path = small_learner(tmp_path / "s"), tmp_path / "history.csv"
    whole = HistoryCallback(path)
    learn.fit(3, 1e-3, cbs=whole)
    rows = whole.state_dict()["rows"][:2]
    again = HistoryCallback(path)
    again.load_state_dict({"rows": rows})
    learn.first_epoch = 2
    learn.fit(3, 1e-3, cbs=again)
    assert pd.read_csv(path)["epoch"].tolist() == [1, 2, 3]


def test_events_say_what_happened_when(trained):
    run, _ = trained
    start, *epochs = events(run)
    assert start["event"] == "start"
    assert start["environment"]["packages"]["torch"] == version("torch")
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert all(e["seconds"] > 0 and math.isfinite(e["mcc"]) for e in epochs)
    assert all(len(e["time"]) == len("2026-11-26T10:00:00Z") for e in epochs)


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path)("start")
    path.write_bytes(path.read_bytes() + b'{"time": "2026')
    EventLog(path)("resume", epoch=2)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["start", "resume"]
    path.write_bytes(b'{"time"')
    EventLog(path)("start")
    assert len(path.read_text().splitlines()) == 1


def test_skipped_batches_are_events(tmp_path):
    class Spoil(Callback):
        order = 0

        def before_batch(self):
            if self.training and self.iter == 1:
                self.learn.xb = (self.xb[0] * float("nan"),)

    learn = small_learner(tmp_path / "s")
    learn.fit(1, 1e-3, cbs=[Spoil(), GradientGuard(), EventsCallback(tmp_path / "events.jsonl")])
    skipped, epoch = events(tmp_path)
    assert (skipped["event"], skipped["epoch"], skipped["batch"]) == ("skipped", 1, 2)
    assert skipped["tiles"]
    assert epoch["event"] == "epoch"


def test_the_environment_tells_the_state_of_the_source_tree():
    about = environment()
    assert about["git"] is None or (len(about["git"]["commit"]) == 40 and about["git"]["changed"] in (True, False))
    assert about["processes"] == 1
    json.dumps(about)


@pytest.mark.slow
def test_wandb_is_told_of_the_run_and_changes_nothing(trained, tmp_path):
    """An offline run of the real package, in a process of its own: it starts services that stay."""
    tiny_recipe("record.wandb=glaciers").save(tmp_path / "r.yaml")
    words = ["finetune", "--recipe", tmp_path / "r.yaml", "--data", trained[1].path, "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "glacier_fastai", *map(str, words)],
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    told = next(folder.glob("*.wandb")).read_bytes()
    assert all(word in told for word in (b"glaciers", b"train_loss", b"ice_mcc", b"plateau_patience"))
    assert (tmp_path / "run" / "history.csv").read_bytes() == (trained[0] / "history.csv").read_bytes()


def test_wandb_that_is_not_installed_is_one_line(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        RecipeError, match=r"record\.wandb: install it with pip install 'glacier-fastai\[wandb\]', or set"
    ):
        train(tiny_recipe("record.wandb=glaciers"), trained[1].path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_records_that_cannot_be_written_are_said_once_and_end_nothing(tmp_path, caplog, monkeypatch):
    def full(folder, step):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "_EventFile", full)
    (tmp_path / "history.csv").mkdir()
    (tmp_path / "events.jsonl").mkdir()
    cbs = [
        HistoryCallback(tmp_path / "history.csv"),
        EventsCallback(tmp_path / "events.jsonl"),
        TensorBoardRecord(tmp_path / "tb", 0),
    ]
    small_learner(tmp_path / "s").fit(2, 1e-3, cbs=cbs)
    said = [m for m in caplog.messages if "the training goes on without it" in m]
    assert len(said) == 3
    assert [name for name in ("history.csv", "events.jsonl", "tb") if not any(name in m for m in said)] == []


def test_a_log_that_is_a_link_is_refused_and_a_hard_link_parted(tmp_path):
    mine, log = tmp_path / "mine", tmp_path / "events.jsonl"
    mine.write_text("mine\nnot ended")
    log.symlink_to(mine)
    with pytest.raises(OutputError, match="a link, which is not followed"):
        EventLog(log)
    log.unlink()
    os.link(mine, log)
    EventLog(log)("start")
    assert mine.read_text() == "mine\nnot ended"
    assert log.read_text().startswith('mine\n{"time"')


def test_files_for_tensorboard_do_not_tell_the_computer(trained):
    assert not [p.name for p in (trained[0] / "tensorboard").iterdir() if platform.node() in p.name]
