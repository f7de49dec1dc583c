"""No command asks the network but those that are told to."""

import pytest
from folders import competition_folder
from fuzz.harness import run
from hkh_folders import hkh_folder
from scenes import BANDS, make_store, tiny_recipe, write_scene
from typer.main import get_command

from glacier_fastai.cli import app
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.registry import build_model

SMALL = "--tile-size 32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("offline") / "work"
    base.mkdir()
    write_scene(base / "scene.tif", 64, 64)
    competition_folder(base / "comp")
    hkh_folder(base / "hkh", scenes=1, splits=False)
    make_store(base / "store", scenes=4)
    options = {"encoder": "resnet18", "attention": "scse"}
    weights = build_model("unet", BANDS, **options).state_dict()
    ModelBundle(weights, "unet", options, BANDS, (5000.0,) * 5, (2000.0,) * 5).save(base / "b.safetensors")
    tiny_recipe("train.epochs=1", "data.folds=2").save(base / "r.yaml")
    return base


LINES = {
    "prepare scene": f"scene.tif --label scene_label.tif --out t1 {SMALL}",
    "prepare competition": "comp --out t2",
    "prepare hkh": "hkh --out t3",
    "prepare synthetic": f"--out t4 --scenes 1 --scene-size 64 {SMALL}",
    "recipes show": "demo",
    "recipes schema": "",
    "recipes": "",
    "pretrain": "--recipe r.yaml --data store --out pre",
    "finetune": "--recipe r.yaml --data store --fold 0 --out fine",
    "crossval": "--recipe r.yaml --data store --out cv",
    "calibrate": "cv --out c.yaml",
    "evaluate": "fine/best.safetensors --data store",
    "predict": "cv/ensemble.yaml scene.tif --out maps --outlines --confidence",
    "report": "fine --out r.html",
    "submit": "b.safetensors --out sub",
}
ELSEWHERE = {
    "launch": "starts torchrun, see tests/train/test_distributed.py",
    "demo": "the commands above, one after the other",
}


def test_every_command_is_tried():
    groups = get_command(app).commands
    names = {f"{name} {inner}" for name, group in groups.items() for inner in getattr(group, "commands", {})}
    names |= {name for name in groups if name != "prepare"}
    assert names == {*LINES, *ELSEWHERE}


@pytest.mark.parametrize("name", LINES)
def test_no_command_asks_the_network(folder, name):
    outcome = run([*name.split(), *LINES[name].split()], folder)
    assert outcome.kind == "accepted", outcome
