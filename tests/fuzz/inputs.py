"""Good inputs of every kind, and how each is spoilt."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import yaml
from fastai.callback.core import Callback

sys.path.insert(0, str(Path(__file__).parents[1]))
from folders import competition_folder
from hkh_folders import hkh_archive, hkh_folder
from polygons import outlines, rectangle
from products import hls, landsat, sentinel2
from scenes import BANDS, made_up, make_store, tiny_recipe, write_raster, write_scene

from glacier_fastai.errors import DataError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.train.checkpoint import CheckpointCallback
from glacier_fastai.train.run import crossval, finetune

NEST: Any = []
for _ in range(200):
    NEST = [NEST]
COMMON = {"swir1": "swir16", "thermal": "lwir11"}
STRANGE = [
    *(None, True, -1, 0, 2**31, 2**64, 10**30, 1e308, -0.0, float("nan"), float("inf")),
    *("", "x" * 5000, "\x1b[2Jx", "a\nb", "\ud800", "\u202e", "a\0b", "{{7*7}}", "$x^$", "=1+1", "2026-02-30"),
    *("../../etc/passwd", "/dev/zero", "http://127.0.0.1:9/x", "EPSG:0", "tu-hf-hub:a/b"),
    *([], {}, [[]], [1, "a"], {"a": 1}, NEST),
]


class Kind(NamedTuple):
    """A kind of input: what is spoilt, and the command that reads it."""

    words: list[str]
    spoilt: list[str]  # files, of which one is spoilt; "*" matches
    same: bool = False  # whether what is accepted must give what the good input gives
    text: bool = False  # whether it is spoilt as a tree of plain data, too


class _Stop(Callback):
    order = CheckpointCallback.order + 1

    def after_epoch(self):
        raise DataError("stopped")


def make(base: Path) -> None:
    """Make the good inputs."""
    store = make_store(base / "store", scenes=3)
    write_scene(base / "scene.tif", 64, 64)
    finetune(tiny_recipe("train.epochs=1"), store, base / "run", fold=0)
    recipe = tiny_recipe("train.epochs=2")
    recipe.save(base / "r.yaml")
    with suppress(DataError):
        finetune(recipe, store, base / "stopped", fold=0, cbs=[_Stop()])
    crossval(tiny_recipe("train.epochs=1", "data.folds=2"), make_store(base / "store2", scenes=4), base / "cv")
    shutil.copy(base / "run" / "best.safetensors", base / "b.safetensors")
    tree = {"version": 1, "members": [{"bundle": "b.safetensors", "weight": 1.0}], "calibration": {"temperature": 1.5}}
    (base / "e.yaml").write_text(yaml.safe_dump(tree))
    ring = [[500300, 3099700], [501500, 3099700], [501500, 3098300], [500300, 3099700]]
    feature = {
        "type": "Feature",
        "properties": {"kind": "glacier"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    crs = {"type": "name", "properties": {"name": "EPSG:32645"}}
    (base / "o.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    import geopandas

    geopandas.read_file(base / "o.geojson").to_file(base / "o.gpkg")
    competition_folder(base / "comp")
    hkh_archive(hkh_folder(base / "hkh", scenes=1, splits=False), base / "hkh.tar.gz")
    (base / "list.csv").write_text("scene\nscene.tif\n")
    _make_products(base)


def _make_products(base: Path) -> None:
    """Make products, and what else comes with a scene: an item, an elevation model, a mask, a map, an inventory."""
    landsat(base / "landsat")
    hls(base / "hls")
    sentinel2(base).path.rename(base / "s2.SAFE")
    shutil.make_archive(str(base / "landsat"), "gztar", base / "landsat")
    shutil.make_archive(str(base / "s2.SAFE"), "zip", base, "s2.SAFE")
    values = made_up(64, 64)[0]
    (base / "stac").mkdir()
    assets = {}
    for band, array in zip(BANDS, values, strict=True):
        write_raster(base / "stac" / f"{band}.tif", array[None])
        assets[band] = {"href": f"{band}.tif", "eo:bands": [{"common_name": COMMON.get(band, band)}], "roles": ["data"]}
    said = {"datetime": "2020-08-01T05:00:00Z", "platform": "landsat-8"}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "a", "properties": said, "assets": assets, "links": []}
    (base / "stac" / "item.json").write_text(json.dumps(item))
    write_raster(base / "dem.tif", np.full((1, 90, 90), 4000.0, np.float32), nodata=-9999)
    write_raster(base / "mask.tif", np.eye(64, dtype=np.uint8)[None])
    outlines(base / "rgi.gpkg", [rectangle(5, 5, 50, 50)], rgi_id=["RGI2000-v7.0-G-15-00001"])
    predict_scene(ModelBundle.load(base / "b.safetensors"), base / "scene.tif", base / "maps0", Wanted(confidence=True))


SCENE = ["prepare", "scene", "scene.tif", "--out", "t", "--tile-size", "32"]
SCENE_OF, OUTLINED = ["prepare", "scene"], ["--outlines", "o.geojson", "--out", "t", "--tile-size", "32"]
GLACIERS = ["glaciers", "maps0/scene_classes.tif", "--date", "2020-08-01", "--inventory"]
KINDS = {
    "recipe": Kind(["recipes", "show", "r.yaml"], ["r.yaml"], text=True),
    "option": Kind(["recipes", "show", "r.yaml", "--set"], []),
    "ensemble": Kind(["evaluate", "e.yaml", "--data", "store"], ["e.yaml"], text=True),
    "bundle": Kind(["evaluate", "b.safetensors", "--data", "store"], ["b.safetensors"], same=True),
    "store": Kind(["evaluate", "b.safetensors", "--data", "store"], ["store/*"], same=True),
    "store, described": Kind(["evaluate", "b.safetensors", "--data", "store"], ["store/dataset.json"], text=True),
    "scene": Kind(["predict", "b.safetensors", "scene.tif", "--out", "maps"], ["scene.tif"]),
    "label": Kind([*SCENE, "--label", "scene_label.tif"], ["scene_label.tif"]),
    "outlines": Kind([*SCENE, "--outlines", "o.geojson"], ["o.geojson"], text=True),
    "GeoPackage": Kind([*SCENE, "--outlines", "o.gpkg"], ["o.gpkg"]),
    "list": Kind(["predict", "b.safetensors", "list.csv", "--out", "maps"], ["list.csv"]),
    "competition": Kind(["prepare", "competition", "comp", "--out", "t"], ["comp/Train/*/*"]),
    "HKH": Kind(["prepare", "hkh", "hkh", "--out", "t"], ["hkh/glacier_data/*/*"]),
    "HKH, places": Kind(["prepare", "hkh", "hkh", "--out", "t"], ["hkh/glacier_data/*.geojson"], text=True),
    "HKH, archive": Kind(["prepare", "hkh", "hkh.tar.gz", "--out", "t"], ["hkh.tar.gz"]),
    "checkpoint": Kind(
        ["finetune", "--recipe", "r.yaml", "--data", "store", "--fold", "0", "--out", "stopped", "--resume"],
        ["stopped/last.ckpt"],
    ),
    "out of fold": Kind(["calibrate", "cv", "--out", "c.yaml"], ["cv/oof/*"]),
    "Landsat": Kind([*SCENE_OF, "landsat", *OUTLINED], ["landsat/*"], text=True),
    "Landsat, archive": Kind([*SCENE_OF, "landsat.tar.gz", *OUTLINED], ["landsat.tar.gz"]),
    "Sentinel-2": Kind([*SCENE_OF, "s2.SAFE", *OUTLINED], ["s2.SAFE/**/*"]),
    "Sentinel-2, archive": Kind([*SCENE_OF, "s2.SAFE.zip", *OUTLINED], ["s2.SAFE.zip"]),
    "HLS": Kind([*SCENE_OF, "hls", *OUTLINED], ["hls/*"]),
    "STAC item": Kind([*SCENE_OF, "stac/item.json", *OUTLINED], ["stac/item.json"], text=True),
    "elevation model": Kind([*SCENE, "--label", "scene_label.tif", "--dem", "dem.tif"], ["dem.tif"]),
    "mask": Kind([*SCENE, "--label", "scene_label.tif", "--mask", "mask.tif"], ["mask.tif"]),
    "inventory": Kind([*GLACIERS, "rgi.gpkg", "--out", "by"], ["rgi.gpkg"]),
    "map": Kind([*GLACIERS, "rgi.gpkg", "--out", "by"], ["maps0/*"], text=True),
    "report": Kind(["report", "run", "--out", "r.html"], ["run/*.json", "run/*.yaml"], text=True),
    "report, tables": Kind(["report", "run", "--out", "r.html"], ["run/*.csv", "run/*.jsonl", "run/*.safetensors"]),
}


def spoil(kind: Kind, folder: Path, rng: Random) -> tuple[list[str], str]:
    """Spoil a copy of the good inputs; return the command, and what was done."""
    if not kind.spoilt:
        known = [
            "seed",
            "train.lr",
            "bands",
            "model.encoder",
            "augment",
            "data.crop",
            "loss.alpha",
            "a.b.c",
            "",
            "model",
        ]
        value = deepcopy(rng.choice(STRANGE))
        text = value if isinstance(value, str) else json.dumps(value)
        item = f"{rng.choice(known)}={text[: rng.choice((1, 10, 10_000))]}".replace("\0", "").encode("utf-8", "replace")
        return [*kind.words, item.decode()], repr(item[:80])
    found = sorted(p for pattern in kind.spoilt for p in folder.glob(pattern) if p.is_file())
    path = rng.choice(found)
    data = path.read_bytes()
    if kind.text and path.suffix in (".json", ".yaml", ".geojson") and rng.random() < 0.7:
        data, what = _by_structure(data, path.suffix, rng)
    elif rng.random() < 0.05:
        return list(kind.words), f"{path.name}: {_by_file(path, rng)}"
    else:
        data, what = _by_bytes(data, rng)
    path.write_bytes(data)
    return list(kind.words), f"{path.name}: {what}"


def _by_structure(data: bytes, suffix: str, rng: Random) -> tuple[bytes, str]:
    tree = yaml.safe_load(data) if suffix == ".yaml" else json.loads(data)
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        node, key, where = tree, None, []
        while isinstance(node, (dict, list)) and node and (key is None or rng.random() < 0.7):
            key = rng.choice(sorted(node, key=str) if isinstance(node, dict) else range(len(node)))
            where.append(str(key))
            parent, node = node, node[key]
        if key is None:
            continue
        value = deepcopy(rng.choice(STRANGE))
        match rng.randrange(4):
            case 0:
                del parent[key]
                said.append(f"{'.'.join(where)} deleted")
            case 1 if isinstance(parent, dict):
                parent[rng.choice(("zzz", "", "\x1b", "a" * 500))] = value
                said.append(f"a key beside {'.'.join(where)}")
            case _:
                parent[key] = value
                said.append(f"{'.'.join(where)} = {str(value)[:30]!r}")
    as_json = suffix != ".yaml" or rng.random() < 0.5  # which is YAML, too
    text = json.dumps(tree) if as_json else yaml.safe_dump(tree, allow_unicode=False)
    return text.encode("utf-8", "surrogatepass"), "; ".join(said)


def _by_bytes(data: bytes, rng: Random) -> tuple[bytes, str]:
    found, said = bytearray(data), []
    for _ in range(rng.choice((1, 1, 2, 4))):
        n = len(found)
        near = rng.random() < 0.5  # headers are at the start, and in archives at the end
        at = rng.randrange(min(n, 400)) if near and n else rng.randrange(n or 1)
        length = rng.choice((1, 4, 16, 300))
        match rng.randrange(7):
            case 0:
                for _ in range(rng.choice((1, 1, 8))):
                    if n:
                        found[min(at + rng.randrange(8), n - 1)] ^= 1 << rng.randrange(8)
                said.append(f"bits at {at}")
            case 1:
                del found[at:]
                said.append(f"cut to {at}")
            case 2:
                del found[at : at + length]
                said.append(f"{length} removed at {at}")
            case 3:
                found[at:at] = rng.randbytes(length)
                said.append(f"{length} put in at {at}")
            case 4:
                found[at : at + length] = bytes(len(found[at : at + length]))
                said.append(f"{length} zeros at {at}")
            case 5:
                found[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\xff\x7f")
                )
                said.append(f"an extreme number at {at}")
            case _:
                found[at:at] = found[at : at + length]
                said.append(f"{length} twice at {at}")
    return bytes(found), ", ".join(said)


def _by_file(path: Path, rng: Random) -> str:
    what: dict[str, Callable[[], Any]] = {
        "empty": lambda: path.write_bytes(b""),
        "a folder": lambda: (path.unlink(), path.mkdir()),
        "gone": path.unlink,
        "zeros": lambda: path.write_bytes(bytes(10_000)),
        "text": lambda: path.write_text("hello\n"),
        "a link to itself": lambda: (path.unlink(), path.symlink_to(path.name)),
        "a link to /dev/zero": lambda: (path.unlink(), path.symlink_to("/dev/zero")),
        "of a terabyte": lambda: os.truncate(path, 2**40),
    }
    name = rng.choice(sorted(what))
    what[name]()
    return name
