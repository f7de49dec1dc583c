"""What broken runs leave behind, and whether the next run gives the undisturbed result.

    python tests/benchmarks/broken_runs.py [--only predict]

Each command is killed, stopped, interrupted, its reader goes away, its disk is full, or its folder is read-only; then
it is run again (with --resume where there is something to go on with), and what it makes is compared with what it makes
undisturbed. Needs Linux; full disks and read-only folders need `unshare -rm`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from folders import competition_folder
from safetensors import safe_open
from scenes import BANDS, make_store, tiny_recipe, write_scene

from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.registry import build_model

GF = [sys.executable, "-m", "glacier_fastai"]
LINES = {  # command -> its words, and the file whose content is its result
    "prepare": ("prepare scene scene.tif --label scene_label.tif --out out/t --tile-size 32", "out/t/images.npy"),
    "finetune": ("finetune --recipe r.yaml --data store --fold 0 --out out/run", "out/run/best.safetensors"),
    "crossval": ("crossval --recipe r.yaml --data store --out out/cv", "out/cv/ensemble.yaml"),
    "calibrate": ("calibrate cv --out out/c.yaml", "out/c.yaml"),
    "predict": ("predict b.safetensors scene.tif --out out/maps --outlines", "out/maps/scene_classes.tif"),
    "submit": ("submit b.safetensors --out out/sub", "out/sub/model.pth"),
    "report": ("report run --out out/r.html", "out/r.html"),
}
DISTURBED = ("kill -9", "SIGTERM", "SIGINT", "closed pipe", "full disk", "read-only")


def make(base: Path) -> None:
    """Make what the commands read."""
    write_scene(base / "scene.tif", 256, 256)
    competition_folder(base / "comp")
    make_store(base / "store", scenes=4)
    tiny_recipe("train.epochs=4", "data.folds=2").save(base / "r.yaml")
    options = {"encoder": "resnet18", "attention": "scse"}
    weights = build_model("unet", BANDS, **options).state_dict()
    ModelBundle(weights, "unet", options, BANDS, (5000.0,) * 5, (2000.0,) * 5).save(base / "b.safetensors")
    for words in (LINES["finetune"][0], LINES["crossval"][0]):
        _run(base, words.replace("out/", ""))


def _run(folder: Path, words: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([*GF, *words.split()], cwd=folder, capture_output=True, text=True, check=False, **kwargs)


def content(path: Path) -> str:
    """Return a hash of a result, without dates and folders."""
    if not path.exists():
        return "absent"
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
            data = b"".join(file.get_tensor(k).numpy().tobytes() for k in names)
    elif path.suffix == ".html":
        text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", path.read_text())
        data = text.encode()
    else:
        data = path.read_bytes()
    return hashlib.sha256(data).hexdigest()[:12]


def left(folder: Path) -> list[str]:
    """Return what lies in `out` that is no result: names that begin with a point, or end in .partial."""
    found = [str(p.relative_to(folder / "out")) for p in (folder / "out").rglob("*")]
    return [name for name in found if any(part.startswith(".") for part in name.split("/"))]


def disturb(folder: Path, words: str, how: str, seconds: float) -> tuple[int, str]:
    """Run a command that is disturbed amid its work; return its exit code, and its last line."""
    command = [*GF, *words.split()]
    if how in ("full disk", "read-only"):
        script = {
            "full disk": 'mount -t tmpfs -o size=24k none out; shift; "$@"',
            "read-only": 'mount --bind out out; mount -o remount,ro,bind out; shift; "$@"',
        }[how]
        done = subprocess.run(
            ["unshare", "-rm", "bash", "-c", script, "bash", "-", *command],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]
    if how == "closed pipe":
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            process.stdout.readline()
            process.stdout.close()
        return process.returncode, ""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal({"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}[how])
        err = process.communicate()[1]
    return process.returncode, (err.strip().splitlines() or [""])[-1]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(LINES), action="append")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as work:
        good = Path(work) / "good"
        good.mkdir()
        make(good)
        for name in options.only or LINES:
            words, result = LINES[name]
            times, wanted = [], ""
            for _ in range(2):  # the first one reads from a cold disk
                case = _case(work, good)
                began = time.monotonic()
                assert _run(case, words).returncode == 0, name
                times.append(time.monotonic() - began)
                wanted = content(case / result)
            for how in DISTURBED:
                case = _case(work, good)
                code, line = disturb(case, words, how, 0.6 * times[-1])
                remains, there = left(case), "whole" if content(case / result) == wanted else content(case / result)
                again = (
                    f"{words} --resume"
                    if name in ("finetune", "crossval") and (case / result).parent.exists()
                    else words
                )
                if there == "whole" and name in ("prepare", "calibrate", "submit", "report"):
                    now = wanted  # it had ended
                else:
                    done = _run(case, again)
                    now = content(case / result) if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:60]
                ok = now == wanted and not left(case)
                wrong += not ok
                said = f"exit {code:4} | result {there:12} | left {remains or '-'}"
                then = "the undisturbed result" if now == wanted else now
                mark = "right" if ok else "WRONG"
                print(f"{mark} | {name:9} | {how:11} | {said} | again {then} | {line[:70]}", flush=True)
    return int(bool(wrong))


def _case(work: str, good: Path) -> Path:
    case = Path(work) / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(good, case)
    (case / "out").mkdir()
    os.sync()
    return case


if __name__ == "__main__":
    raise SystemExit(main())
