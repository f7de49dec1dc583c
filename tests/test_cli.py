import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
from folders import competition_folder
from hkh_folders import hkh_folder
from scenes import BANDS, changed, made_up, make_store, write_raster, write_scene
from typer.testing import CliRunner

import glacier_fastai
from glacier_fastai.cli import app, main

HEAVY = ("torch", "fastai", "rasterio", "numpy", "pandas", "matplotlib", "geopandas")
SMALL = [
    "data.tile_size=32",
    "data.crop=32",
    "data.folds=3",
    "data.crops_per_tile=1",
    "train.batch_size=4",
    "train.epochs=1",
    "model.size=tiny",
]
SET = [word for item in SMALL for word in ("--set", item)]


def process(*args):
    """Run the command line in a process of its own, as a user does."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "glacier_fastai", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.fixture
def run(monkeypatch):
    """Run the command line in this process, where everything is imported already; results as of `process`."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["glacier-fastai", *map(str, args)])
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run the command line in this process and expect one line of refusal."""

    def check(*args, match):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["glacier-fastai", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        out = capsys.readouterr()
        assert out.out == ""
        lines = out.err.splitlines()
        assert len(lines) == 1, out.err
        assert lines[0].startswith("glacier-fastai: ")
        assert re.search(match, lines[0]), lines[0]

    return check


COMMANDS = [
    [],
    ["demo"],
    ["pretrain"],
    ["finetune"],
    ["crossval"],
    ["launch"],
    ["evaluate"],
    ["calibrate"],
    ["predict"],
    ["correct"],
    ["submit"],
    ["report"],
    ["recipes"],
    ["recipes", "show"],
    ["recipes", "schema"],
    ["prepare"],
    ["prepare", "scene"],
    ["prepare", "competition"],
    ["prepare", "hkh"],
    ["prepare", "synthetic"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_every_option_is_described(command):
    out = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert out.exit_code == 0
    assert "Usage:" in out.stdout
    for line in out.stdout.splitlines():
        if re.search(r"--[a-z]", line) and "│" in line:
            assert len(re.sub(r"(--[\w-]+|<[\w|]+>|[│*]|\s)", "", line)) > 10, line


def test_help_imports_nothing_heavy():
    out = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "glacier_fastai", "finetune", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.split("|")[-1].strip().split(".")[0] for line in out.stderr.splitlines() if "|" in line}
    assert "typer" in imported
    assert imported.isdisjoint(HEAVY)


def test_recipes_are_listed_shown_and_described():
    invoke = CliRunner().invoke
    names = [line.split()[0] for line in invoke(app, ["recipes"]).stdout.splitlines()]
    assert names == [
        *("competition_cpu", "competition_finetune", "competition_glcm", "demo", "everest", "forest"),
        *("hkh_pretrain", "ratio", "seed_competition"),
    ]
    shown = invoke(app, ["recipes", "show", "everest", "--set", "train.lr=1e-3"]).stdout
    assert "lr: 0.001" in shown
    assert json.loads(invoke(app, ["recipes", "schema"]).stdout)["title"] == "Recipe"


def test_the_whole_way_from_a_scene_to_a_map(run, tmp_path):
    scene, label = write_scene(tmp_path / "scene.tif")
    store, out = tmp_path / "tiles", tmp_path / "run"
    done = run("prepare", "scene", scene, "--label", label, "--out", store, "--tile-size", 32)
    assert (done.returncode, done.stdout) == (0, f"{store}\n")
    assert "9 tiles of 32 px, bands blue, green, red, swir1, thermal" in done.stderr
    words = ["--recipe", "demo", "--fold", 0, "--data", store, "--out", out, *SET, "--set", "data.spatial=false"]
    done = process("finetune", *words)
    assert (done.returncode, done.stdout) == (0, f"{out / 'best.safetensors'}\n"), done.stderr
    assert "Warning" not in done.stderr
    assert "epoch 1/1" in done.stderr
    done = run("evaluate", out / "best.safetensors", "--data", store, "--json")
    result = json.loads(done.stdout)
    assert set(result) == {
        *("mcc", "ice_mcc", "mean_iou", "ice_iou", "mcc_image_mean", "ece", "classes", "ice", "confusion", "notes")
    }
    assert set(result["classes"]["lake"]) == {"iou", "precision", "recall", "f1", "pixels"}
    assert "the 3 tiles of fold 0" in done.stderr
    done = run("evaluate", out / "best.safetensors", "--data", store, "--fold", "all")
    assert re.search(r"^MCC +-?\d\.\d{4}$", done.stdout, re.MULTILINE)
    assert "Debris" in done.stdout
    options = ["--confidence", "--outlines", "--set", "predict.views=true", "--set", "predict.postprocess={}"]
    done = process("predict", out / "best.safetensors", scene, "--out", tmp_path / "maps", *options)
    names = ("classes.tif", "confidence.tif", "outlines.gpkg")
    assert done.stdout.splitlines() == [f"{tmp_path / 'maps' / 'scene'}_{name}" for name in names], done.stderr
    with rasterio.open(tmp_path / "maps" / "scene_classes.tif") as file:
        assert file.shape == (96, 80)


@pytest.mark.slow
def test_from_a_cross_validation_to_maps_and_a_submission(run, tmp_path):
    ids = [f"{r:02}_{c:02}" for r in (0, 2, 4) for c in (0, 2)]
    competition_folder(tmp_path / "comp", ids=ids)
    competition_folder(tmp_path / "new", ids=["07_07"], labels=True, seed=9)
    recipe = ["--recipe", "demo", *SET, "--set", "predict.views=true", "--set", "model.encoder=resnet18"]
    done = run("crossval", *recipe, "--data", tmp_path / "comp", "--out", tmp_path / "cv")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "cv" / "ensemble.yaml"
    assert done.stdout.splitlines() == [str(tmp_path / "cv" / "crossval.csv"), str(file)]
    assert "out of fold: 6 tiles" in done.stderr and "ECE" in done.stderr
    done = run("calibrate", tmp_path / "cv", "--out", tmp_path / "e.yaml", "--bias")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'e.yaml'}\n"), done.stderr
    done = run("evaluate", file, "--data", tmp_path / "new", "--json")
    assert {"mcc", "ece", "classes"} <= set(json.loads(done.stdout)), done.stderr
    assert "all 1 tiles" in done.stderr
    done = run("evaluate", file, "--data", tmp_path / "comp")
    assert "models were trained on them: these scores say little" in done.stderr and "ECE" in done.stdout
    done = run("submit", file, "--out", tmp_path / "sub", "--check", tmp_path / "new", "--seconds", 10)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'sub'}\n"), done.stderr
    assert "1 tiles: masks written and returned are those of predict" in done.stderr
    scenes = [write_scene(tmp_path / f"{k}.tif", 64, 64, seed=k)[0] for k in range(2)]
    (tmp_path / "bad.tif").write_text("not a raster")
    words = ["predict", file, tmp_path / "?.tif", tmp_path / "bad.tif", "--out", tmp_path / "maps", "--json"]
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "glacier-fastai: 1 of 3 scenes failed, see above; the others are done"
    assert [r["state"] for r in json.loads(done.stdout)] == ["done", "done", "failed"]
    done = run("predict", file, *scenes, "--out", tmp_path / "maps", "--part", "2/2")
    assert done.stdout == f"{tmp_path / 'maps' / '1_classes.tif'}\n"


@pytest.mark.slow
def test_the_competitions_own_folder_is_trained_on_and_scored(run, tmp_path):
    ids = [f"{r:02}_{c:02}" for r in (0, 2, 4) for c in (0, 1, 3)]
    competition_folder(tmp_path / "comp", ids=ids)
    recipe = ["--recipe", "competition_finetune", *SET]
    recipe += ["--set", "bands=[red, swir1, glcm_contrast(swir1)]", "--set", "texture.levels=16"]
    done = run("finetune", "--fold", 2, "--data", tmp_path / "comp", "--out", tmp_path / "run", *recipe)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'comp' / 'Train'}: making its tile store" in done.stderr
    table = pd.read_csv(tmp_path / "run" / "folds.csv", dtype={"id": str})
    assert table["id"].tolist() == sorted(ids)
    assert set(table["fold"]) == {0, 1, 2}
    done = run("evaluate", tmp_path / "run" / "best.safetensors", "--data", tmp_path / "comp")
    assert "the 3 tiles of fold 2" in done.stderr and "making" not in done.stderr
    done = run("prepare", "competition", tmp_path / "comp", "--out", tmp_path / "store")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'store'}\n")
    assert "9 tiles of 32 px, bands blue, green, red, swir1, thermal" in done.stderr


def test_units_notes_and_force_on_the_command_line(run, trained, tmp_path):
    bundle = trained[0] / "best.safetensors"
    scene, label = write_scene(tmp_path / "s.tif")
    words = ["--scale", "1e-4", "--offset=-0.1", "--tile-size", 32, "--out", tmp_path / "t"]
    made = run("prepare", "scene", scene, "--label", label, *words)
    assert made.returncode == 0, made.stderr
    assert f"note: {scene}: scale 0.0001 is for reflected light, thermal keep their own" in made.stderr
    info = json.loads((tmp_path / "t" / "dataset.json").read_text())
    assert info["units"] == ["reflectance"] * 4 + ["dn"]
    assert any("thermal" in line for line in info["notes"])
    for words in (["evaluate", bundle, "--data", tmp_path / "t"], ["predict", bundle, scene, "--scale", "1e-4"]):
        done = run(*words, *(["--out", tmp_path / "m", "--force"] if words[0] == "predict" else ["--force"]))
        assert done.returncode == 2
        assert "reflectance, but the model was trained on" in done.stderr
    assert not (tmp_path / "m").exists()
    scored = run("evaluate", bundle, "--data", tmp_path / "t", "--stats", "scene", "--json")
    assert scored.returncode == 0, scored.stderr
    assert scored.stderr.count("normalised by the scene's own statistics") == 1
    assert any("own statistics" in line for line in json.loads(scored.stdout)["notes"])
    far = changed(make_store(tmp_path / "near", dtype="float32"), tmp_path / "far", lambda values: 30 * values)
    assert "unless it is forced" in run("evaluate", bundle, "--data", far.path).stderr
    forced = run("evaluate", bundle, "--data", far.path, "--force")
    assert forced.returncode == 0, forced.stderr
    assert "note: " in forced.stderr and "values far" in forced.stderr


@pytest.mark.slow
def test_hkhs_own_folder_is_trained_on(run, tmp_path):
    root = hkh_folder(tmp_path, scenes=3, size=32)
    recipe = ["--recipe", "hkh_pretrain", *SET]
    done = run("pretrain", "--data", tmp_path, "--out", tmp_path / "run", *recipe)
    assert done.returncode == 0, done.stderr
    assert "making its tile store" in done.stderr
    done = run("prepare", "hkh", root / "splits", "--out", tmp_path / "splits", "--bands", "red,thermal")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'splits'}\n"), done.stderr
    done = run("pretrain", "--data", tmp_path / "splits", "--out", tmp_path / "r", *recipe, "--set", "bands=[red]")
    assert done.returncode == 0, done.stderr
    done = run("evaluate", tmp_path / "r" / "best.safetensors", "--data", tmp_path / "splits", "--fold", "test")
    assert "the 3 test tiles" in done.stderr


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, refused):
    scene, label = write_scene(tmp_path / "scene.tif")
    store = make_store(tmp_path / "store").path
    refused(
        "prepare", "scene", scene, "--label", label, "--out", store, "--tile-size", "32", match="store: exists already"
    )
    refused(
        "prepare", "scene", tmp_path / "x.tif", "--label", label, "--out", tmp_path / "o", match=r"x\.tif: no such file"
    )
    refused("prepare", "synthetic", "--out", tmp_path / "o", "--sensor", "landsat9", match="landsat9")
    refused("finetune", "--recipe", "demmo", match="no recipe 'demmo'.*did you mean 'demo'")
    refused("finetune", "--recipe", "demo", "--set", "train.epoch=1", match="did you mean 'epochs'")
    refused("finetune", "--recipe", "demo", "--fold", "three", match="fold three: use a number, or all")
    refused("finetune", "--recipe", "demo", "--fold", "٣" * 5000, match="fold ٣+: use a number, or all")
    refused("finetune", "--recipe", "demo", *SET, "--data", store, "--fold", "7", match="folds 0 to 2")
    refused("pretrain", "--recipe", "demo", match="no data: name a tile store or a raw folder")
    refused(
        "launch",
        "--processes",
        "2",
        "--",
        "evaluate",
        "x",
        match="give a command, pretrain, finetune, crossval, predict, with",
    )
    refused("launch", "--processes", "2", match="after -- give a command, pretrain")
    refused("evaluate", scene, "--data", store, match="not a safetensors file")
    refused("predict", tmp_path / "b.safetensors", scene, "--out", tmp_path, match="no such file")
    refused("predict", scene, "--out", tmp_path, match="no model: name a bundle .*the order is MODEL... SCENE...")
    refused("predict", tmp_path / "b.safetensors", "--out", tmp_path, match="no scene to map")
    refused("submit", tmp_path / "b.safetensors", "--out", tmp_path / "o", match="no such file")
    refused("calibrate", tmp_path, "--out", tmp_path / "e.yaml", match="no out-of-fold predictions")
    (tmp_path / "file").write_text("")
    refused(
        "pretrain",
        "--recipe",
        "demo",
        *SET,
        "--data",
        store,
        "--out",
        tmp_path / "file" / "run",
        match="Not a directory",
    )
    (tmp_path / "file").unlink()
    refused("prepare", "hkh", "--out", tmp_path / "o", match="name the folder or the archive, or ask for --download")
    refused("prepare", "hkh", tmp_path, "--out", tmp_path / "o", match="no HKH tiles in it")
    refused("prepare", "hkh", tmp_path, "--out", tmp_path / "o", "--bands", "bqa", match="useless as flags")
    refused("prepare", "hkh", tmp_path, "--out", tmp_path / "o", "--bands", ",", match="no bands given")
    twice = "thermal,thermal_high"
    refused("prepare", "hkh", tmp_path, "--out", tmp_path / "o", "--bands", twice, match="name one of them")
    refused("prepare", "competition", tmp_path, "--out", tmp_path / "o", match="no folder Band1 in it")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene.tif", "scene_label.tif", "store"]


def test_a_refusal_has_400_characters_at_most(monkeypatch, capsys):
    for name in ("x" * 100 + "/" + "y" * 200 + "/" + "z" * 200 + ".yaml", "y" * 5000 + ".yaml"):
        monkeypatch.setattr(sys, "argv", ["glacier-fastai", "recipes", "show", name])
        with pytest.raises(SystemExit):
            main()
        assert 300 < len(capsys.readouterr().err.removesuffix("\n")) <= 400


def test_an_error_from_within_a_callback_is_still_one_line(run, tmp_path):
    store = make_store(tmp_path / "store").path
    out = run("pretrain", "--recipe", "demo", *SET, "--data", store, "--out", tmp_path / "r", "--set", "train.lr=1e30")
    assert out.returncode == 2
    assert out.stderr.splitlines()[-1] == "glacier-fastai: the loss is not finite after epoch 1; lower train.lr"


@pytest.mark.slow
def test_debug_shows_where_it_failed(tmp_path):
    out = process("evaluate", tmp_path / "x.safetensors", "--data", tmp_path, "--debug")
    assert out.returncode == 1
    assert "Traceback" in out.stderr
    assert "BundleError: " in out.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prepare", "scene", "a.tif"], "Missing option '--out'"),
        (
            ["predict", "b.safetensors", "s.tif", "--out", "o", "--stats", "own"],
            "'own' is not one of 'bundle', 'scene'",
        ),
    ],
)
def test_a_missing_or_wrong_option_is_explained(run, words, says):
    out = run(*words)
    assert out.returncode == 2
    assert says in " ".join(re.sub("[│╭╮╰╯─]", "", out.stderr).split())
    assert "Traceback" not in out.stderr


def test_predicting_and_evaluating_import_no_fastai():
    code = "import sys, glacier_fastai.predict.scenes, glacier_fastai.model.evaluate; print('fastai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_library_knows_no_flag_and_prints_nothing():
    package = Path(glacier_fastai.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.name in ("cli.py", "solution.py"):  # the command; a command of its own
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
            flag = text and re.search(r"(?<![\w-])--[a-z]", node.value) and " " in node.value
            prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            argv = isinstance(node, ast.Attribute) and node.attr == "argv"
            if flag or prints or argv:
                found.append(f"{path.relative_to(package)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert found == []


def command(*words, **kwargs):
    return subprocess.Popen([sys.executable, "-W", "ignore", "-m", "glacier_fastai", *words], text=True, **kwargs)


def test_readers_that_go_away_and_full_disks_are_no_traceback():
    pipe = subprocess.PIPE
    with command("recipes", "schema", stdout=pipe, stderr=pipe) as child:
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""
    with open("/dev/full", "w") as full:
        with command("recipes", stdout=full, stderr=pipe) as child:
            said = child.stderr.read()
        assert "No space left on device" in said and said.count("\n") == 1 and child.returncode == 2
        with command("recipes", "show", "demo", stdout=pipe, stderr=full) as child:
            assert "epochs" in child.stdout.read()
        with command("recipes", "show", "none", stdout=pipe, stderr=full) as child:
            assert child.stdout.read() == ""
        assert child.returncode == 2


def test_results_are_shown_on_a_terminal_that_knows_ascii_alone(tmp_path):
    (tmp_path / "r.yaml").write_text("bands: [red, nir]\nabout: é\n", encoding="utf-8")
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with command("recipes", "show", str(tmp_path / "r.yaml"), env=env, stdout=subprocess.PIPE) as child:
        assert "about: \\xe9\n" in child.stdout.read()
    assert child.returncode == 0


def test_a_display_that_is_not_there_is_not_asked_for(monkeypatch, refused):
    monkeypatch.setenv("MPLBACKEND", "odd")
    refused("recipes", "show", "none", match="no recipe 'none'")
    assert os.environ["MPLBACKEND"] == "Agg"


def test_settings_of_matplotlib_are_not_those_of_the_folder(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: x\n")
    code = """
import os
from glacier_fastai import cli

def app(**_):
    import matplotlib
    print(matplotlib.rcParams["text.usetex"], os.getcwd())

cli.app = app
cli._run()"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (f"False {tmp_path.resolve()}\n", "")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    closing = 'exec "$@" <&- >&- 2>&-'
    words = ["sh", "-c", closing, "sh", sys.executable, "-W", "ignore", "-m", "glacier_fastai"]
    words += ["prepare", "synthetic", "--out", str(tmp_path / "t"), "--scenes", "1", "--scene-size", "64"]
    assert subprocess.run([*words, "--tile-size", "64"], check=False).returncode == 0
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [
        "dataset.json",
        "images.npy",
        "masks.npy",
        "tiles.csv",
    ]


def test_a_command_that_is_terminated_leaves_nothing(tmp_path):
    words = ["prepare", "synthetic", "--out", str(tmp_path / "t"), "--scenes", "400"]
    with command(*words, stderr=subprocess.PIPE) as child:
        while not list(tmp_path.glob(".t.partial/images.npy")):
            time.sleep(0.05)
        child.terminate()
        assert child.stderr.read() == ""
    assert child.returncode == 128 + 15
    assert list(tmp_path.iterdir()) == []


def test_bands_in_files_of_their_own_and_a_composite(trained, tmp_path, run):
    values = made_up(64, 64)[0]
    (tmp_path / "parts").mkdir()
    for band, array in zip(BANDS, values, strict=True):
        write_raster(tmp_path / "parts" / f"{band}.tif", array[None], nodata=0)
    write_raster(tmp_path / "one.tif", values, nodata=0, bands=BANDS)
    model, out = trained[0] / "best.safetensors", tmp_path / "maps"
    named = ",".join(f"{band}={band}.tif" for band in BANDS)
    done = run("predict", model, tmp_path / "parts", "--bands", named, "--out", out)
    one = run("predict", model, tmp_path / "one.tif", "--out", out)
    assert (done.returncode, one.returncode) == (0, 0), done.stderr + one.stderr
    with rasterio.open(out / "parts_classes.tif") as a, rasterio.open(out / "one_classes.tif") as b:
        np.testing.assert_array_equal(a.read(), b.read())
    done = run("predict", model, tmp_path / "one.tif", tmp_path / "one.tif", "--composite", "two", "--out", out)
    assert done.returncode == 2 and "two scenes or more" in done.stderr
    write_raster(tmp_path / "two.tif", np.where(values > 0, values + 1, values), nodata=0, bands=BANDS)
    words = ["predict", model, tmp_path / "one.tif", tmp_path / "two.tif", "--composite", "both", "--out", out]
    assert "by one process" in run(*words, "--part", "1/2").stderr
    done = run(*words, "--composite-by", "least-snow")
    assert done.returncode == 0 and str(out / "both_dates.tif") in done.stdout
    store = run(
        "prepare",
        "scene",
        tmp_path / "parts",
        "--bands",
        named,
        "--out",
        tmp_path / "t",
        "--label",
        write_raster(tmp_path / "label.tif", made_up(64, 64)[1][None]),
        "--tile-size",
        32,
    )
    assert store.returncode == 0 and "4 tiles" in store.stderr, store.stderr


def test_from_a_corrected_map_to_a_model_that_learned_of_it(trained, tmp_path, run):
    bundle, (scene, _) = trained[0] / "best.safetensors", write_scene(tmp_path / "scene.tif")
    done = run("predict", bundle, scene, "--out", tmp_path / "maps", "--outlines", "--doubtful", 4)
    assert done.returncode == 0, done.stderr
    _, outlines, places = done.stdout.splitlines()
    for path, layer in ((outlines, "classes"), (places, "doubtful")):  # as a person does it in a GIS
        table = geopandas.read_file(path, layer=layer)
        table["class" if layer == "classes" else "checked"] = "debris" if layer == "classes" else True
        table.to_file(path, layer=layer)
    words = ["--checked", places, "--tile-size", 32, "--out", tmp_path / "corrected"]
    done = run("correct", scene, outlines, *words)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'corrected'}\n"), done.stderr
    assert re.search(r"[\d,]+ pixels of another class, [\d,]+ pixels looked at", done.stderr)
    words = ["--recipe", "demo", "--fold", "all", "--weights", bundle, "--data", tmp_path / "corrected"]
    done = run("finetune", *words, *SET, "--out", tmp_path / "run")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'run' / 'best.safetensors'}\n"), done.stderr
    done = run("correct", scene, outlines, "--map", scene, "--out", tmp_path / "no")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError("Unable to allocate 300. KiB")])
def test_no_memory_and_no_thread_is_one_line(refused, monkeypatch, error):
    def app(**_):
        raise error

    monkeypatch.setattr("glacier_fastai.cli.app", app)
    refused("report", match="not enough memory, or threads .*; close other programs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nosuch", "No such command 'nosuch'; .*--help` tells more"),
        ("predict", r"Missing argument 'MODEL\.\.\. SCENE\.\.\.'; .*predict --help` tells more"),
        ("predict a b --out c --resolution nan", "Invalid value for '--resolution'"),
        ("predict a b --out c --windov 3", "No such option: --windov"),
    ],
)
def test_wrong_words_are_refused_in_one_line(refused, words, said):
    refused(*words.split(), match=said)
