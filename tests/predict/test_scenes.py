import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
from scenes import BANDS, made_up, write_raster, write_scene

from glacier_fastai.errors import BundleError, DataError, DataNote, OutputError, PredictionError
from glacier_fastai.files import locked
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.predict.scenes import find_scenes, part_of, predict_scenes, summary


@pytest.fixture
def bundle(trained):
    return ModelBundle.load(trained[0] / "best.safetensors")


def test_files_patterns_and_manifests_name_scenes(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b.tif", "a.tif", "c.TIF"):
        (tmp_path / "in" / name).write_text("")
    files = [tmp_path / "in" / n for n in ("a.tif", "b.tif")]
    assert find_scenes([tmp_path / "in" / "*.tif"]) == files
    (tmp_path / "list.txt").write_text("\ufeff# ours\n in/b.tif \n\n # theirs\nin/a.tif\n", encoding="utf-8")
    assert find_scenes([tmp_path / "list.txt", files[0]]) == files[::-1]
    pd.DataFrame({"scene": ["in/a.tif", "in/b.tif"], "note": 1}).to_csv(tmp_path / "list.csv")
    assert find_scenes([tmp_path / "list.csv"]) == files
    assert find_scenes([tmp_path / "x.tif"]) == [tmp_path / "x.tif"]  # said when it is its turn
    (tmp_path / "a.tif").write_text("")
    with pytest.raises(DataError, match=r"a\.tif: its map would have the name of .*use an output folder for each"):
        find_scenes([files[0], tmp_path / "a.tif"])
    with pytest.raises(DataError, match=r"\*\.jp2: no file matches"):
        find_scenes([tmp_path / "*.jp2"])
    with pytest.raises(DataError, match="no.txt: no such file"):
        find_scenes([tmp_path / "no.txt"])
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="names no scene"):
        find_scenes([tmp_path / "empty.txt"])
    (tmp_path / "other.csv").write_text("path\na.tif\n")
    with pytest.raises(DataError, match="no column scene; it has path"):
        find_scenes([tmp_path / "other.csv"])


def test_a_pattern_leaves_out_maps_made_before(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    all_of_it = Wanted("uint8", True, True, True)
    scene = write_scene(Path("a.tif"), 64, 64)[0]
    Path("b").mkdir()
    write_scene(Path("b") / "B.TIF", 64, 64)
    mine = [Path("c_classes.tif"), Path("a_label.tif"), Path("a_confidence_old.tif")]  # no map of ours
    for path in mine:
        path.write_bytes(scene.read_bytes())
    Path("c_prediction.json").write_text('{"by": "somebody else"}')
    assert find_scenes(["*.tif"]) == sorted([scene, *mine])
    assert find_scenes(["**/*.[tT][iI][fF]"]) == sorted([scene, *mine, Path("b/B.TIF"), Path("b/B_label.tif")])
    predict_scenes(bundle, ["a.tif"], ".", all_of_it)
    predict_scenes(bundle, ["b/*.TIF"], "b", all_of_it)
    assert find_scenes(["*.tif"]) == sorted([scene, *mine])
    Path("a.tif.aux.xml").write_text("")
    Path("a_classes.tif.aux.xml").write_text("")
    assert find_scenes(["a*"]) == sorted([scene, *mine[1:]])
    assert find_scenes(["b/*.[tT]*"]) == [Path("b/B.TIF"), Path("b/B_label.tif")]
    assert find_scenes(["**/*.tif"]) == sorted([scene, *mine, Path("b/B_label.tif")])
    again = predict_scenes(bundle, ["a.t*", "b/B.*"], ".", all_of_it)
    assert again["state"].tolist() == ["done before", "done"]
    assert find_scenes(["a_classes.tif"]) == [Path("a_classes.tif")]  # alone by name, so it is meant
    with pytest.warns(DataNote, match=r"^a_classes\.tif and 1 more: a map made before, no scene"):
        assert find_scenes(["a_classes.tif", "a_confidence.tif", "a.tif"]) == [scene]  # as a shell expands
    with pytest.raises(DataError, match=r"^b/\*_classes.tif: matches nothing but maps made before, such as b/B_cla"):
        find_scenes(["b/*_classes.tif"])
    Path("folder.tif").mkdir()
    assert find_scenes(["folder.*"]) == [Path("folder.tif")]  # which may be a product
    with pytest.raises(DataError, match=r"nothing\.\*: no file matches"):
        find_scenes(["nothing.*"])
    Path("a_prediction.json").unlink()
    assert Path("a_classes.tif") in find_scenes(["a*"])


def test_parts_are_all_scenes_each_once(monkeypatch):
    scenes = [Path(f"{k}.tif") for k in range(7)]
    shares = [part_of(scenes, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(sum(shares, [])) == scenes
    assert part_of(scenes) == scenes
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert part_of(scenes) == shares[1]
    for wrong in ("0/3", "4/3", "2", "a/b", "1/0"):
        with pytest.raises(DataError, match=f"part {wrong}: write it as i/n"):
            part_of(scenes, wrong)


def test_one_scene_that_fails_does_not_keep_others_from_being_done(bundle, tmp_path, caplog):
    good = [write_scene(tmp_path / f"{k}.tif", 64, 64, seed=k)[0] for k in range(2)]
    broken = tmp_path / "broken.tif"
    broken.write_bytes(good[0].read_bytes()[:5000])
    order = [good[0], broken, tmp_path / "absent.tif", good[1]]
    with caplog.at_level("INFO", "glacier_fastai"):
        table = predict_scenes(bundle, order, tmp_path / "maps")
    assert table["state"].tolist() == ["done", "failed", "failed", "done"]
    assert "broken.tif" in table["error"][1] and "absent.tif: no such file" in table["error"][2]
    assert caplog.messages[2].startswith("3 of 4: ")
    assert "4 scenes: 2 done, 2 failed" in summary(table)
    names = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert names == [f"{k}_{what}" for k in range(2) for what in ("classes.tif", "prediction.json")]
    again = predict_scenes(bundle, good, tmp_path / "maps")
    assert again["state"].tolist() == ["done before"] * 2
    with pytest.raises(DataError, match="broken.tif"):
        predict_scenes(bundle, order[1:], tmp_path / "other", on_error="stop")
    assert not (tmp_path / "other").exists()


def test_names_of_scenes_are_shown_printable(bundle, tmp_path, caplog):
    (tmp_path / "list.txt").write_text("miss\x1b[2J\x07ing.tif\nnone.tif\n")
    table = predict_scenes(bundle, [tmp_path / "list.txt"], tmp_path / "maps")
    assert all(line.isprintable() for line in (*caplog.messages, *summary(table).splitlines()))
    assert r"miss\x1b[2J\x07ing.tif  failed: " in summary(table)


def test_all_outputs_lie_on_the_grid_and_fit_each_other(bundle, scene, tmp_path):
    wanted = Wanted("uint8", True, True, True, window=64)
    files = {k: Path(p) for k, p in predict_scene(bundle, scene[0], tmp_path / "a", wanted)["files"].items()}
    assert all(p.exists() for p in files.values())
    exact = predict_scene(bundle, scene[0], tmp_path / "b", Wanted("float32", window=64))["files"]
    with rasterio.open(scene[0]) as source:
        grid = source.crs, source.transform, source.shape
    arrays = {}
    for kind in ("classes", "probabilities", "confidence"):
        with rasterio.open(files[kind]) as file:
            assert (file.crs, file.transform, file.shape) == grid
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert file.nodata == 255
            arrays[kind] = file.read()
            if kind != "classes":
                assert file.scales[0] == pytest.approx(1 / 254)
    with rasterio.open(exact["probabilities"]) as file:
        assert np.isnan(file.nodata) and file.descriptions[1] == "probability of glacier"
        probs = file.read()
    classes, valid = arrays["classes"][0], made_up()[2]
    np.testing.assert_array_equal(classes == 255, ~valid)
    for array in (arrays["probabilities"], arrays["confidence"]):
        np.testing.assert_array_equal((array == 255).all(0), ~valid)
    np.testing.assert_array_equal(np.isnan(probs).all(0), ~valid)
    np.testing.assert_allclose(probs.sum(0)[valid], 1, atol=1e-5)
    np.testing.assert_array_equal(probs.argmax(0)[valid], classes[valid])
    np.testing.assert_allclose(arrays["probabilities"][:, valid] / 254, probs[:, valid], atol=0.51 / 254)
    np.testing.assert_allclose(arrays["confidence"][0][valid] / 254, probs.max(0)[valid], atol=0.51 / 254)
    glaciers = geopandas.read_file(files["outlines"], layer="glaciers")
    assert glaciers.area.sum() == pytest.approx(np.isin(classes, (1, 2)).sum() * 900)
    assert glaciers["area_low_km2"].isna().all()  # nothing was calibrated


def test_indices_and_the_scenes_own_statistics(bundle, tmp_path):
    write_scene(tmp_path / "s.tif")
    values, _, valid = made_up()
    twice = write_raster(tmp_path / "t.tif", values * 3 + valid.astype("uint16") * 500, nodata=0, bands=BANDS)
    own = Wanted(statistics="scene")
    a, b = (predict_scene(bundle, p, tmp_path / "maps", own)["files"]["classes"] for p in (tmp_path / "s.tif", twice))
    with rasterio.open(a) as first, rasterio.open(b) as second:  # gain and offset fall out
        assert (first.read(1) != second.read(1)).mean() < 0.002
    flat = write_raster(tmp_path / "flat.tif", values * 0 + np.uint16(7), bands=BANDS)
    with pytest.raises(DataError, match="band blue is constant .*the bundle's statistics"):
        predict_scene(bundle, flat, tmp_path / "maps", own)
    few = write_raster(tmp_path / "few.tif", values[:2], nodata=0, bands=BANDS[:2])
    with pytest.raises(BundleError, match="needs band red, swir1, thermal; here are blue, green"):
        predict_scene(bundle, few, tmp_path / "maps")


def test_a_scene_in_degrees_is_mapped_with_true_areas_and_one_without_crs_is_refused(bundle, tmp_path):
    values = made_up()[0]
    degrees = rasterio.transform.from_origin(86.5, 28.1, 0.0003, 0.0003)
    path = write_raster(tmp_path / "d.tif", values, nodata=0, bands=BANDS, crs="EPSG:4326", transform=degrees)
    files = predict_scene(bundle, path, tmp_path, Wanted(outlines=True))["files"]
    classes = geopandas.read_file(files["outlines"], layer="classes")
    with rasterio.open(files["classes"]) as file:
        mapped = np.isin(file.read(1), (1, 2, 3)).sum()
    pixel = (0.0003 * 111.32) ** 2 * np.cos(np.radians(28.09))  # km2, to a per cent
    assert classes["area_km2"].sum() == pytest.approx(mapped * pixel, rel=0.01)
    nowhere = write_raster(tmp_path / "n.tif", values, nodata=0, bands=BANDS, crs=None)
    with pytest.raises(DataError, match=r"n\.tif: has no coordinate reference system; assign one"):
        predict_scene(bundle, nowhere, tmp_path)
    site = rasterio.CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]')
    path = write_raster(tmp_path / "local.tif", values, nodata=0, bands=BANDS, crs=site)
    with pytest.raises(DataError, match="local_outlines.gpkg: no areas.*not lead to the Earth.*leave out the outl"):
        predict_scene(bundle, path, tmp_path / "local", Wanted(outlines=True))
    assert not (tmp_path / "local").exists()
    assert predict_scene(bundle, path, tmp_path / "local")["pixels"]["background"] > 0


FULL = """
import resource, sys
from glacier_fastai.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # as a full disk: the write fails
sys.argv[0] = "glacier-fastai"
main()
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_stays(trained, scene, tmp_path):
    for kind in ("--outlines", "--probabilities=float32"):
        words = ["predict", trained[0] / "best.safetensors", scene[0], "--out", tmp_path / "maps", kind]
        command = [sys.executable, "-c", FULL, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        line = done.stderr.splitlines()[-1]
        assert "cannot be written" in line and ("make room" in line or "another --out" in line)
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "maps").exists()


KILLED = """
import os, signal, sys
import glacier_fastai.predict.scene as scene
from glacier_fastai.model.bundle import ModelBundle

def dies(strips, settings):
    for k, strip in enumerate(strips):
        if k == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield strip

scene.postprocessed = dies
scene.predict_scene(ModelBundle.load(sys.argv[1]), sys.argv[2], sys.argv[3], scene.Wanted(window=64))
"""


@pytest.mark.slow
def test_kill_9_in_mid_scene_leaves_no_map_and_the_same_command_makes_it(trained, bundle, scene, tmp_path):
    words = [sys.executable, "-c", KILLED, trained[0] / "best.safetensors", scene[0], tmp_path / "maps"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert left == [".scene.lock", ".scene.partial"]
    made = predict_scene(bundle, scene[0], tmp_path / "maps", Wanted(window=64))
    assert not made["done_before"]
    left = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert left == ["scene_classes.tif", "scene_prediction.json"]
    record = json.loads((tmp_path / "maps" / "scene_prediction.json").read_text())
    assert record["wanted"]["window"] == 64 and sum(record["pixels"].values()) == made_up()[2].sum()


@pytest.mark.slow
def test_ctrl_c_in_mid_scene_ends_at_once_and_leaves_nothing(trained, scene, tmp_path):
    interrupted = KILLED.replace("SIGKILL", "SIGINT")
    words = [sys.executable, "-c", interrupted, trained[0] / "best.safetensors", scene[0], tmp_path / "maps"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT and done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert not (tmp_path / "maps").exists()


def test_two_processes_do_not_write_the_same_scene(bundle, scene, tmp_path):
    maps = tmp_path / "maps"
    with locked(maps / ".scene.lock", ""), pytest.raises(OutputError, match="another process is mapping scene"):
        predict_scene(bundle, scene[0], maps)
    assert not maps.exists()


@pytest.mark.slow
def test_a_launch_shares_the_scenes_out(trained, tmp_path):
    for k in range(3):
        write_scene(tmp_path / f"s{k}.tif", 48, 48, seed=k)
    bundle, out = trained[0] / "best.safetensors", tmp_path / "maps"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["launch", "--processes", 2, "--", "predict", bundle, tmp_path / "s?.tif", "--out", out, "--confidence"]
    done = subprocess.run(
        [sys.executable, "-m", "glacier_fastai", *map(str, words)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.glob("*_classes.tif")) == [f"s{k}_classes.tif" for k in range(3)]
    assert len(done.stdout.splitlines()) == 6


def test_a_scene_without_memory_is_one_line_and_the_next_is_mapped(bundle, tmp_path, monkeypatch):
    wide, _ = write_scene(tmp_path / "wide.tif", 64, 12_000)
    other, _ = write_scene(tmp_path / "other.tif", 64, 64)
    monkeypatch.setattr("glacier_fastai.memory.available", lambda: 8 * 10**7)
    table = predict_scenes(bundle, [wide, other], tmp_path / "maps")
    assert table["state"].tolist() == ["failed", "done"]
    assert "wide.tif: 64 rows of 12,000 px need 0.1 GB of memory" in table["error"][0]
    monkeypatch.undo()

    def full(self, windows):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("glacier_fastai.model.predictor.Predictor._mean", full)
    with pytest.raises(PredictionError, match="out of memory on cpu with one window"):
        predict_scene(bundle, wide, tmp_path / "maps")
