"""Training in several processes, for real: two gloo processes on the CPU."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from scenes import make_store
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError

from glacier_fastai.errors import RunStopped, TrainingError
from glacier_fastai.model import processes
from glacier_fastai.predict.scenes import predict_scenes
from glacier_fastai.train import launch
from glacier_fastai.train.checkpoint import load_checkpoint

TESTS = Path(__file__).resolve().parents[1]
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
    "CUDA_VISIBLE_DEVICES": "",
}
TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*words, **env):
    return subprocess.run(
        [str(w) for w in words], env={**ENV, **env}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """What one process found and what each of two found, see `two_processes.py`."""
    base = tmp_path_factory.mktemp("compared")
    store, script = make_store(base / "store"), TESTS / "two_processes.py"
    for name, python in (("one", [sys.executable, "-W", "ignore"]), ("two", TORCHRUN)):
        (base / name).mkdir()
        done = run(*python, script, store.path, base / name)
        assert done.returncode == 0, done.stderr[-3000:]
    read = lambda path: torch.load(path, weights_only=True)  # noqa: E731
    return read(base / "one" / "0.pt"), read(base / "two" / "0.pt"), read(base / "two" / "1.pt")


def relative(a, b):
    """Largest difference of two lists of tensors, as a share of the largest value."""
    largest = max(float(x.abs().max()) for x in a)
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) / max(largest, 1e-30)


@pytest.mark.slow
def test_ice_of_unknown_kind_in_one_process_counts_as_in_one_batch(compared):
    one, *two = (found["unknown ice"] for found in compared)
    for other in two:
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert max(map(relative, one["gradients"], other["gradients"])) < 1e-5
    assert len({round(x, 4) for x in one["losses"]}) == 3


@pytest.mark.parametrize("case", ["combined", "learned", "spoilt", "frozen"])
def test_two_processes_train_as_one_on_the_same_global_batches(compared, case):
    one, *two = (found[case] for found in compared)
    for other in two:
        assert len(one["losses"]) == len(other["losses"])
        loss = max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))
        gradients = max(relative(a, b) for a, b in zip(one["gradients"], other["gradients"], strict=True))
        weights = relative(list(one["weights"].values()), list(other["weights"].values()))
        print(
            f"\n{case}: differences of loss {loss:.1e}, gradients {gradients:.1e}, weights {weights:.1e} of the largest"
        )
        assert loss < 1e-5
        assert gradients < 1e-5
        assert weights < 1e-5
        assert len(one["valid"]) == len(other["valid"]) == 2
        assert all(torch.equal(a, b) for a, b in zip(one["valid"], other["valid"], strict=True))
        assert one["skipped"] == other["skipped"] == (2 if case == "spoilt" else 0)
        for a, b in zip(one["rows"], other["rows"], strict=True):
            assert a.keys() == b.keys()
            same = [k for k in a if k != "valid_loss" and not re.fullmatch(r"(?!train_)\w+_loss", k)]
            for k in same:  # a loss of validation is a mean over batches, whose size is that of a process
                assert b[k] == pytest.approx(a[k], abs=1e-5, nan_ok=True), k


def test_processes_agree_with_norm_layers_too(compared):
    _, a, b = (found["norms"] for found in compared)
    trained = [k for k in a["weights"] if "running" not in k]
    assert all(torch.equal(a["weights"][k], b["weights"][k]) for k in trained)
    assert torch.equal(a["valid"][0], b["valid"][0])
    assert str(a["rows"]) == str(b["rows"])  # NaN included


def test_processes_train_on_batches_of_their_own(compared):
    one, a, b = (found["norms"]["seen"] for found in compared)
    assert len(a) == len(b) == len(one)
    assert len({*a, *b}) == 2 * len(one)


# the command

SMALL = ["data.tile_size=32", "data.crop=32", "data.folds=3", "data.crops_per_tile=6", "train.batch_size=4"]
SMALL += [
    "model.size=tiny",
    "record.panels_every=0",
    "train.epochs=3",
    "train.precision=fp32",
    "train.ema=0.9",
    "train.accumulate=2",
    "train.warmup=0.2",
    "train.decay=0.5",
]


def command(store, out, *more):
    words = ["finetune", "--recipe", "demo", "--data", store.path, "--out", out, *more]
    return [*words, *(w for item in SMALL for w in ("--set", item))]


LAUNCH = [sys.executable, "-u", "-m", "glacier_fastai", "launch", "--processes", "2", "--"]


def kill(launcher, rank):
    """Kill the process of this rank, a child of the launcher."""
    ranks = [p for p in psutil.Process(launcher.pid).children() if p.environ().get("RANK") == str(rank)]
    assert len(ranks) == 1
    ranks[0].kill()


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A store, and a run on it in two processes that was never stopped, with what it said."""
    base = tmp_path_factory.mktemp("launched")
    store = make_store(base / "store")
    done = run(*LAUNCH, *command(store, base / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    return store, base / "run", done


@pytest.mark.slow
def test_a_launch_runs_no_code_of_the_current_folder(tmp_path):
    (tmp_path / "typer.py").write_text("open('run', 'w')")
    words = [sys.executable, "-P", "-m", "glacier_fastai", "launch", "--processes", "1", "--"]  # as the script starts
    done = subprocess.run(
        [*words, "finetune", "--recipe", "none"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "no recipe 'none'" in done.stderr and done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["typer.py"]


@pytest.mark.slow
def test_a_launch_writes_and_says_all_once(launched):
    _, out, done = launched
    assert done.stdout == f"{out / 'best.safetensors'}\n"
    assert done.stderr.count("epoch 1/3") == 1
    assert "2 processes" in done.stderr
    assert "batches  12 per epoch of 4 crops of 32 px" in done.stderr
    assert len(pd.read_csv(out / "history.csv")) == 3
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert len(load_checkpoint(out / "last.ckpt")["ranks"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill a process", "Ctrl-C"])
def test_a_launch_ends_as_a_whole_and_goes_on(launched, tmp_path, how):
    store, whole, _ = launched
    out, log = tmp_path / "run", tmp_path / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*LAUNCH, *map(str, command(store, out))], stdout=file, stderr=file, env=ENV, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while not (out / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        kill(process, 1)
    code, lines = process.wait(timeout=120), log.read_text().splitlines()
    print("\n" + "\n".join(lines[-3:]))
    if how == "Ctrl-C":
        assert code == 75
        assert lines[-1].startswith("glacier-fastai: stopped by SIGINT; start it again with resume to go on")
    else:
        assert code == 2
        assert lines[-1].startswith(
            "glacier-fastai: process 1 of 2 was killed by signal 9, and the others were stopped"
        )
        assert "glacier-fastai: another process of the launch has ended, so this one cannot go on" in lines
    assert "Traceback" not in log.read_text()
    done = run(*LAUNCH, *command(store, out, "--resume"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed  after" in done.stderr
    for name in ("history.csv", "metrics.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_another_number_of_processes_is_refused(launched):
    store, out, _ = launched
    done = run(sys.executable, "-m", "glacier_fastai", *command(store, out, "--resume"))
    assert done.returncode == 2
    assert "of another run (processes: 2 there, 1 here)" in done.stderr


@pytest.mark.slow
def test_accelerate_launch_does_the_same(launched, tmp_path):
    store, whole, _ = launched
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "glacier_fastai"]
    done = run(*accelerate, *command(store, tmp_path / "run"), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()


def test_a_launch_that_cannot_be_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(TrainingError, match="3 processes: this machine has no GPU and 2 cores; use 2 at most"):
        launch.launch(["pretrain"], 3)
    for odd in ("\x1b[2J", "host", "host:port", "a b:1", "host:1234567"):
        with pytest.raises(TrainingError, match="rendezvous '.*': write HOST:PORT"):
            launch.launch(["pretrain"], 2, 2, odd)
    with pytest.raises(TrainingError, match="2 machines: name a rendezvous HOST:PORT"):
        launch.launch(["pretrain"], 2, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TrainingError, match="2 processes: this machine has 1 GPU; use 1 at most"):
        launch.launch(["pretrain"], 2)


def test_processes_that_do_not_meet_are_refused_before_work(monkeypatch, tmp_path):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    (tmp_path / "s.tif").touch()
    with pytest.raises(TrainingError, match="2 processes of the launch cannot meet .*MASTER_ADDR.*; unset RANK and"):
        predict_scenes(None, [tmp_path / "s.tif"], tmp_path / "maps")
    assert not (tmp_path / "maps").exists()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(processes, "MEET", timedelta(seconds=1))
    with pytest.raises(TrainingError, match="2 processes of the launch cannot meet"):
        processes.init_processes()


def test_machines_that_do_not_meet_are_one_line(monkeypatch):
    def nobody(args):
        raise RendezvousTimeoutError

    monkeypatch.setattr(launch, "torchrun", nobody)
    with pytest.raises(TrainingError, match="the 2 machines do not meet; .* rendezvous that all reach"):
        launch.launch(["pretrain"], 1, 2, "127.0.0.1:29500")


@pytest.mark.slow
def test_a_refusal_in_a_launch_is_told(launched, tmp_path):
    done = run(*LAUNCH, *command(launched[0], tmp_path / "run", "--set", "train.lr=-1"))
    assert done.returncode == 2
    assert "glacier-fastai: " in done.stderr and "train.lr: " in done.stderr
    assert "Traceback" not in done.stderr
    sync = run(*LAUNCH, *command(launched[0], tmp_path / "run", "--set", "train.sync_bn=true"))
    assert sync.returncode == 2
    assert "sync_bn: norm statistics are shared between GPUs only; set it to false" in sync.stderr
    assert not (tmp_path / "run").exists()


def test_alone_everything_is_as_it_is():
    x = torch.arange(3)
    assert processes.world_size() == 1
    assert processes.all_reduce(x) is x
    assert processes.all_reduce_max(4) == 4
    assert processes.all_gather([1]) == [[1]]
    assert processes.on_rank_zero(lambda: 7) == 7
    processes.init_processes()
    assert not torch.distributed.is_initialized()
    assert RunStopped.exit_code != TrainingError.exit_code
