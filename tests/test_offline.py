"""No command asks the network but those that are told to."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from folders import competition_folder
from fuzz.harness import run
from hkh_folders import hkh_folder
from listening import nobody_asks
from polygons import outlines, rectangle
from scenes import BANDS, make_store, tiny_recipe, write_raster, write_scene
from typer.main import get_command
from web import Web

from glacier_fastai.cli import app
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.registry import build_model

SMALL, MAP = "--tile-size 32", "maps/scene_classes.tif"


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
    outlines(base / "rgi.gpkg", [rectangle(5, 5, 50, 50)], rgi_id=["RGI2000-v7.0-G-15-00001"], kind=["debris"])
    write_raster(base / "dem.tif", np.add.outer(np.arange(64.0), np.arange(64.0))[None].astype(np.float32) + 3000)
    tiny_recipe("train.epochs=1", "data.folds=2").save(base / "r.yaml")
    return base


def test_no_shift_of_datum_is_asked_for(tmp_path, monkeypatch):
    shift = "transform('EPSG:26710', 'EPSG:32610', [5e5], [5.4e6])"  # from NAD27, for which there are grids
    code = f"import glacier_fastai.data.scenes.raster; from rasterio.warp import transform; {shift}"
    with nobody_asks(monkeypatch) as url:
        asks = {**os.environ, "PROJ_NETWORK": "ON", "PROJ_NETWORK_ENDPOINT": url, "NO_PROXY": "127.0.0.1"}
        subprocess.run([sys.executable, "-c", code], env=asks, check=True, timeout=60)


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
    "predict": "cv/ensemble.yaml scene.tif --out maps --outlines --confidence --doubtful 3",
    "correct": f"scene.tif rgi.gpkg --class-field kind --map {MAP} --out t5 {SMALL}",
    "glaciers": f"{MAP} --divides dem.tif --date 2020-08-01 --out by",
    "change": f"{MAP} later/scene_classes.tif --inventory rgi.gpkg --dates 2020-08-01,2023-08-01 --out ch",
    "page": f"{MAP} --out page.html",
    "export": "b.safetensors --to torch --out b.pt2",
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


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_no_command_asks_the_network(folder, name):
    if name == "change":
        shutil.copytree(folder / "maps", folder / "later")
    outcome = run([*name.split(), *LINES[name].split()], folder)
    assert outcome.kind == "accepted", outcome


@pytest.mark.parametrize(
    "line",
    [
        "predict b.safetensors {url}/s.tif --out {out}",
        "predict b.safetensors /vsicurl/{url}/s.tif --mask {url}/m.tif --out {out}",
        "predict b.safetensors list.txt --out {out}",
        "prepare scene {url}/s.tif --label scene_label.tif --tile-size 32 --out {out}",
    ],
)
def test_an_address_is_asked_and_no_other_host(folder, line, tmp_path):
    files = {"s.tif": "scene.tif", "m.tif": "scene_label.tif"}
    with Web({name: (folder / file).read_bytes() for name, file in files.items()}) as server:
        (folder / "list.txt").write_text(f"{server.url}/s.tif\n")
        words = line.format(url=server.url, out=tmp_path / "out").split()
        outcome = run(words, folder, (server.server_port,))
        assert outcome.kind == "accepted", outcome
        assert {path for path, _ in server.asked} == {"/s.tif", *(["/m.tif"] if "m.tif" in line else [])}


def test_nothing_that_a_remote_file_says_is_asked(folder, tmp_path):
    """Of a raster on the network that names another host, as VRTs and overviews do, GDAL sees its bytes alone."""
    with Web({}) as server:
        vrt = f"<VRTDataset rasterXSize='1' rasterYSize='1'><SRS>{server.url}/x</SRS></VRTDataset>"
        path = tmp_path / "o.tif"
        path.write_bytes((folder / "scene.tif").read_bytes())
        with rasterio.open(path, "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{server.url}/o.ovr")
        server.files |= {"/v.tif": vrt.encode(), "/o.tif": path.read_bytes()}
        for name in ("v.tif", "o.tif"):
            words = ["predict", "b.safetensors", f"{server.url}/{name}", "--out", str(tmp_path / "out")]
            assert run(words, folder, (server.server_port,)).kind == "refused"
        assert {path for path, _ in server.asked} == {"/v.tif", "/o.tif"}
