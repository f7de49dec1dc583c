import ast
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from folders import IDS, competition_folder, write_one
from PIL import Image
from scenes import normalised

from glacier_fastai.bands import CLASSES, COMPETITION_CODES, IGNORE
from glacier_fastai.core.calibration import calibrated, decide
from glacier_fastai.core.dihedral import one_pass
from glacier_fastai.core.morphology import postprocess
from glacier_fastai.data.channels import Texture, channels_of, compute_channels
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.unet import glacier_unet
from glacier_fastai.predict import solution
from glacier_fastai.predict.standalone import standalone

SOURCE = standalone(solution)
BANDS = ("blue", "green", "red", "swir1", "thermal")
TEXTURE = {"window": 7, "edges": {"swir1": [3000.0, 4000.0, 5000.0, 6000.0, 7000.0], "red": [2500.0, 5000.0]}}
ALL = (*BANDS, "glcm_contrast(swir1)", "glcm_energy(swir1)", "glcm_homogeneity(red)")
MEAN, STD = (
    (5000.0, 5100.0, 4900.0, 5300.0, 5200.0, 6.0, 0.3, 0.7),
    (2000.0, 2100.0, 1900.0, 2200.0, 2000.0, 4.0, 0.1, 0.2),
)


def network(arch="resnet18", bands=5, attention="scse", seed=0):
    """A network whose weights and statistics are all made up, so that none of them goes unnoticed."""
    torch.manual_seed(seed)
    model = glacier_unet(arch, bands, len(CLASSES), attention).eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.ndim == 1 and value.is_floating_point():
            value.add_(0.2 * torch.randn_like(value))
    model.segmentation_head[0].weight.data.mul_(20)
    return model


@functools.cache
def bundle(bands=BANDS, seed=0, attention="scse"):
    n = len(bands)
    texture = TEXTURE if n > 5 else None
    weights = {
        k: v.half().float() if v.ndim > 1 else v
        for k, v in network("resnet18", n, attention, seed).state_dict().items()
    }
    return ModelBundle(
        weights,
        "unet",
        {"encoder": "resnet18", "attention": attention, "scale": 0.5 if seed == 2 else 1.0},
        tuple(bands),
        MEAN[:n],
        STD[:n],
        texture=texture,
    )


def content(*bundles, **changes):
    """What model.pth holds."""
    members = [
        {
            "arch": b.options["encoder"],
            "attention": b.options["attention"],
            "scale": b.options["scale"],
            "bands": list(b.bands),
            "mean": list(b.mean),
            "std": list(b.std),
            "texture": b.texture,
            "weight": 1.0 + k,
            "weights": {n: w.half() if w.ndim > 1 else w for n, w in b.weights.items()},
        }
        for k, b in enumerate(bundles)
    ]
    return {
        "format": "glacier_fastai submission",
        "version": 1,
        "seconds_per_tile": 0.0,
        "tells_debris": True,
        "members": members,
        "views": [0],
        "scales": [1.0],
        "temperature": 1.0,
        "bias": [0.0] * 4,
        "offsets": [0.0] * 4,
        "postprocess": {"min_size": [0] * 4, "fill_holes": [0] * 4, "smooth": 0},
        **changes,
    }


FULL = {
    "views": [0, 3, 6, 5],
    "scales": [1.0, 0.75],
    "temperature": 1.4,
    "bias": [0.1, -0.2, 0.3, -0.2],
    "offsets": [0.0, 0.1, 0.3, 0.5],
    "postprocess": {"min_size": [0, 12, 9, 5], "fill_holes": [0, 10, 10, 3], "smooth": 1},
}


def textured(image, bands, texture):
    """The bands of an image, texture among them, by our own functions."""
    channels = channels_of(bands, Texture(**texture) if texture else None)
    return compute_channels(image, BANDS, channels)


def plainly(values, valid, bundles, how):
    """The map of a tile by our own functions."""
    total, weights = 0, 0
    image = np.where(valid, values, np.nan).astype(np.float32)
    models = [b.model() for b in bundles]
    inputs = []
    for b in bundles:
        inputs.append(torch.from_numpy(normalised(textured(image, b.bands, b.texture), b.mean, b.std))[None])
    with torch.inference_mode():
        for scale in how["scales"]:
            for k in how["views"]:
                for weight, (model, x) in enumerate(zip(models, inputs, strict=True), 1):
                    total = total + weight * one_pass(lambda x, model=model: model(x).softmax(1), x, k, scale)
                    weights += weight
        probs = calibrated((total / weights)[0], how["temperature"], how["bias"])
    classes = np.where(valid, decide(probs, how["offsets"]).numpy(), IGNORE).astype(np.uint8)
    classes = postprocess(classes, **how["postprocess"])
    return np.array(COMPETITION_CODES, np.uint8)[np.where(valid, classes, 0)]


@pytest.fixture
def submission(tmp_path):
    """A folder with solution.py, to which `model.pth` is added."""
    folder = tmp_path / "submission"
    folder.mkdir()
    (folder / "solution.py").write_text(SOURCE, encoding="utf-8")
    return folder


def run(folder, code):
    """Run code in a folder, in a process in which nothing can be imported that the organisers may lack."""
    barred = ("glacier_fastai", "fastai", "segmentation_models_pytorch", "torchvision", "scipy", "skimage", "rasterio")
    code = f"import sys\nsys.modules.update(dict.fromkeys({barred}))\n{code}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def imported(folder):
    """The solution.py of a folder as a module."""
    spec = importlib.util.spec_from_file_location("submitted", folder / "solution.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bands_of(root):
    return {f"Band{b}": str(root / f"Band{b}") for b in range(1, 6)}


def read(path):
    with Image.open(path) as file:
        return np.array(file)


# The file on its own


def test_python_3_9_and_nothing_but_what_the_organisers_have():
    tree = ast.parse(SOURCE, feature_version=(3, 9))
    everywhere, found = {"numpy", "torch"} | sys.stdlib_module_names, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            found |= {(name.split(".")[0], node.col_offset > 0) for name in names}
        if isinstance(node, ast.Call):
            assert "strict" not in [k.arg for k in node.keywords], "zip(strict=) came with Python 3.10"
            types = node.args[-1:] if getattr(node.func, "id", "") in ("isinstance", "issubclass") else []
            assert not any(isinstance(t, ast.BinOp) for t in types), "int | str as a value came with Python 3.10"
    optional = {name for name, inside in found if inside}
    assert {name for name, inside in found if not inside} <= everywhere
    assert optional == {"tifffile", "PIL", "cv2"}


@pytest.mark.parametrize("layout", ["phase1", "phase2"])
def test_both_interfaces_are_what_our_own_functions_say(submission, tmp_path, layout):
    made = competition_folder(tmp_path / "data", layout, ids=IDS[layout][:2], size=40)
    bundles = [bundle(seed=1), bundle(ALL, seed=2, attention="cse")]
    torch.save(content(*bundles, **FULL), submission / "model.pth")
    out = tmp_path / "maps" / "new"
    arguments = {
        "phase1": ["--data", made.root, "--masks", "unused", "--out", out],
        "phase2": ["--imagepath", made.root, "--output", out],
    }[layout]
    code = f"""import runpy
sys.argv = {["solution.py", *map(str, arguments)]}
try:
    runpy.run_path("solution.py", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
import numpy, solution
assert solution.maskgeneration is solution.maskgeration
numpy.savez({str(tmp_path / "maps.npz")!r}, **solution.maskgeration({bands_of(made.root)}, "model.pth"))"""
    found = run(submission, code)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert sorted(p.name for p in submission.iterdir()) == ["model.pth", "solution.py"]
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in made.bands[0].values())

    maps, codes = np.load(tmp_path / "maps.npz"), set()
    assert sorted(maps) == sorted(made.tiles)
    for tile, (values, _, valid) in made.tiles.items():
        want = plainly(values, valid, bundles, FULL)
        assert maps[tile].dtype == np.uint8
        np.testing.assert_array_equal(maps[tile], want)
        np.testing.assert_array_equal(read(out / made.bands[0][tile].name), want)
        assert not want[~valid].any()
        codes |= set(np.unique(want))
    assert len(codes) > 2  # or the made-up network would prove little


@pytest.mark.parametrize("attention", ["scse", "cse", None])
@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_the_network_is_ours_bit_for_bit(arch, attention):
    ours = network(arch, 7, attention)
    other = solution._Unet(arch, 7, attention, 1.0).eval()
    other.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        for size in ((64, 64), (33, 50), (7, 40)):
            x = torch.randn(2, 7, *size)
            assert torch.equal(ours(x), other(x))


def test_the_file_holds_nothing_twice_and_nothing_in_vain():
    tree = ast.parse(SOURCE)
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert len(names) == len(set(names))
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {"maskgeneration"}
    assert set(names) <= used
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]


# Time


@pytest.mark.parametrize("how", ["model", "environment"])
def test_without_time_one_round_of_all_members_makes_the_map(submission, tmp_path, monkeypatch, how):
    made = competition_folder(tmp_path / "data", "phase2", ids=["1"], dtype="int16")
    bundles = [bundle(seed=3), bundle(seed=4)]
    torch.save(content(*bundles, **FULL, seconds_per_tile=1e-9 if how == "model" else 0.0), submission / "model.pth")
    if how == "environment":
        monkeypatch.setenv("GLACIER_SECONDS_PER_TILE", "1e-9")
    module = imported(submission)
    found = module.maskgeration(bands_of(made.root), submission / "model.pth")["1"]
    values, _, valid = made.tiles["1"]
    once = plainly(values, valid, bundles, {**FULL, "views": [0], "scales": [1.0]})
    np.testing.assert_array_equal(found, once)
    if how == "model":
        monkeypatch.setenv("GLACIER_SECONDS_PER_TILE", "0")
        found = module.maskgeration(bands_of(made.root), submission / "model.pth")["1"]
        whole = plainly(values, valid, bundles, FULL)
        np.testing.assert_array_equal(found, whole)
        assert (once != whole).any()


def test_rounds_go_on_while_the_slowest_of_them_would_fit(submission, tmp_path, monkeypatch):
    made = competition_folder(tmp_path / "data", "phase2", ids=["1"])
    torch.save(content(bundle(), **FULL, seconds_per_tile=5.0), submission / "model.pth")
    module, ticks = imported(submission), iter(range(100))
    monkeypatch.setattr(module, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(ticks))}))
    found = module.maskgeration(bands_of(made.root), submission / "model.pth")["1"]
    # each look at the clock is a second: 2 s after the first round, 4 s after the second, 6 s after the third
    values, _, valid = made.tiles["1"]
    np.testing.assert_array_equal(
        found, plainly(values, valid, [bundle()], {**FULL, "views": [0, 3, 6], "scales": [1.0]})
    )


# Files


@pytest.mark.parametrize("library", ["tifffile", "cv2", "PIL"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_any_of_three_libraries_reads_a_tile(tmp_path, monkeypatch, library, dtype):
    for other in {"tifffile", "cv2", "PIL"} - {library}:
        monkeypatch.setitem(sys.modules, other, None)
    values = np.random.default_rng(0).integers(0, 250, (20, 30)).astype(dtype)
    write_one(tmp_path / "b_01_02.tif", values)
    found = solution._read(tmp_path / "b_01_02.tif")[0]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)
    solution._write(tmp_path / "img1.tif", solution.CODES[[[0, 1], [2, 3]]])
    monkeypatch.undo()
    assert read(tmp_path / "img1.tif").tolist() == [[0, 85], [170, 255]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b_01_02.tif", "img1.tif"]


@pytest.mark.parametrize("compress", ["lzw", "deflate"])
def test_compressed_tiles_are_read(tmp_path, compress):
    values = np.random.default_rng(0).integers(0, 60000, (1, 64, 64)).astype(np.uint16)
    profile = {"driver": "GTiff", "count": 1, "height": 64, "width": 64, "dtype": "uint16", "nodata": 7}
    place = {"crs": "EPSG:32645", "transform": rasterio.transform.from_origin(5e5, 3e6, 30, 30)}
    with rasterio.open(tmp_path / "img1.tif", "w", **profile, **place, compress=compress, predictor=2) as file:
        file.write(values)
    found, nodata = solution._read(tmp_path / "img1.tif")
    np.testing.assert_array_equal(found, values[0])
    assert nodata == 7


def test_nodata_is_zero_however_it_is_said(submission, tmp_path):
    """As 0 in all bands, as NaN in one band, or declared by one file."""
    made = competition_folder(tmp_path / "zeros", "phase2", ids=["1"])
    values, _, valid = made.tiles["1"]
    torch.save(content(bundle(), views=[0, 5]), submission / "model.pth")
    want = imported(submission).maskgeration(bands_of(made.root), submission / "model.pth")["1"]
    assert not want[~valid].any()
    assert want[valid].any()
    other = competition_folder(tmp_path / "nan", "phase2", ids=["1"], dtype="float32")
    write_one(other.bands[3]["1"], np.where(valid, values[3], np.nan).astype(np.float32))
    write_one(other.bands[1]["1"], np.where(valid, values[1], 7).astype(np.float32))
    declared = competition_folder(tmp_path / "declared", "phase2", ids=["1"])
    write_one(declared.bands[2]["1"], np.where(valid, values[2], 65535).astype(np.uint16), nodata=65535)
    for folder in (other, declared):
        found = imported(submission).maskgeration(bands_of(folder.root), submission / "model.pth")["1"]
        np.testing.assert_array_equal(found, want)
    nothing = competition_folder(tmp_path / "nothing", "phase2", ids=["1"])
    for files in nothing.bands:
        write_one(files["1"], np.zeros((32, 32), np.uint16))
    found = imported(submission).maskgeration(bands_of(nothing.root), submission / "model.pth")["1"]
    assert (found == 0).all()


def test_tiles_may_differ_in_size_and_bands_in_the_spelling_of_their_folders(submission, tmp_path):
    made = competition_folder(tmp_path / "data", "phase2", ids=["1", "2"])
    for k, files in enumerate(made.bands):
        write_one(files["2"], np.full((20, 45), 3000 + k, np.uint16))
    torch.save(content(bundle()), submission / "model.pth")
    folders = {name.upper(): Path(folder) for name, folder in bands_of(made.root).items()}
    found = imported(submission).maskgeration(folders, str(submission / "model.pth"))
    assert [m.shape for m in found.values()] == [(32, 32), (20, 45)]


# What is refused


def no_band(root, imagepath, _):
    del imagepath["Band3"]


def no_tile(root, imagepath, _):
    (root / "Band2" / "img002.tif").unlink()


def twice(root, imagepath, _):
    shutil.copy(root / "Band1" / "img002.tif", root / "Band1" / "again_img002.tif")


def no_id(root, imagepath, _):
    (root / "Band4" / "img002.tif").rename(root / "Band4" / "tile.tif")


def no_tif(root, imagepath, _):
    shutil.rmtree(root / "Band1")
    (root / "Band1").mkdir()


def pipe(root, imagepath, _):
    os.mkfifo(root / "Band2" / "img009.tif")


def one_band(root, imagepath, _):
    imagepath["band1"] = root / "Band5"


def no_folder(root, imagepath, _):
    imagepath["Band5"] = root / "Band9"


def other_size(root, imagepath, _):
    write_one(root / "Band4" / "img002.tif", np.ones((16, 32), np.uint16))


def two_bands(root, imagepath, _):
    write_one(root / "Band4" / "img002.tif", np.ones((2, 32, 32), np.uint16))


def no_image(root, imagepath, _):
    (root / "Band4" / "img002.tif").write_bytes(b"nothing")


def no_model(root, imagepath, model):
    model.unlink()


def junk(root, imagepath, model):
    model.write_bytes(b"nothing")


def cut_short(root, imagepath, model):
    model.write_bytes(model.read_bytes()[:-5000])


class Code:
    def __reduce__(self):
        return (print, ("executed",))


def code(root, imagepath, model):
    torch.save({"format": Code()}, model)


def changed(**how):
    def change(root, imagepath, model):
        held = torch.load(model, weights_only=True)
        for key, value in how.items():
            (held if key in held else held["members"][0])[key] = value
        torch.save(held, model)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_band, "no Band3 among Band1, Band2, Band4, Band5; all five are needed"),
        (no_tile, r"Band2: no file of tile 002 \(.*Band1.img002.tif\); add it or remove the tile"),
        (twice, "img002.tif: tile 002 is also in again_img002.tif; keep one of them"),
        (no_id, "tile.tif: no tile id in its name; name it like img001.tif"),
        (no_tif, "Band1: no .tif in it"),
        (pipe, "Band2.img009.tif: is no file; remove it"),
        (one_band, "two of Band1, Band2, .*, band1 are one band; name each once"),
        (no_folder, r"Band9: cannot be read \(No such file"),
        (other_size, "Band4.img002.tif: 16 x 32 px; wanted one band, of 32 x 32 px as in Band1"),
        (two_bands, "Band4.img002.tif: .* px; wanted one band"),
        (no_image, r"Band4.img002.tif: cannot be read \(tifffile: .*; pillow: "),
        (no_model, "model.pth: no such file"),
        (junk, "model.pth: not a model, or cut short"),
        (cut_short, "model.pth: not a model, or cut short"),
        (code, "model.pth: not a model, or cut short"),
        (changed(format="other"), "model.pth: a torch file, but no glacier_fastai submission"),
        (changed(version=2), "model.pth: version 2; this solution.py reads 1"),
        (changed(arch="vgg16"), r"damaged \(encoder vgg16: this solution.py knows resnet18, resnet34, resnet50\)"),
        (changed(attention=None), r"damaged \(Error.* Unexpected key"),
        (changed(bands=["blue", "green", "red", "nir", "thermal"]), r"damaged \(band nir: a tile has blue, green, red"),
        (changed(bands=["blue", "green", "red", "glcm_energy(red)", "thermal"]), "damaged"),
        (changed(weights={}), r"damaged \(Error.* Missing key"),
        (changed(members=[]), r"damaged \(no member, view or scale\)"),
        (changed(offsets=[0.0]), "damaged"),
        (changed(postprocess={"smooth": -1}), "damaged .*radius of -1 px"),
        (changed(temperature=0.0, bias=[0.1] * 4), "damaged .*temperature 0"),
        (changed(std=[float("nan")] * 5), r"damaged \(mean and std are not one finite number for each band\)"),
        (changed(mean=[0.0] * 4), r"damaged \(mean and std are not one finite number for each band\)"),
        (changed(std=[0.0] * 5), r"damaged \(a deviation is 0, or the weight is not positive\)"),
        (changed(weight=0.0), r"damaged \(a deviation is 0, or the weight is not positive\)"),
        (changed(bands=["blue"] * 5), r"damaged \(a band is named twice among blue, blue"),
        (
            changed(texture={"edges": {"red": [float("nan")]}, "window": 7}, bands=[*BANDS[:4], ALL[7]]),
            "damaged .*edges",
        ),
        (changed(scale=0.0), r"damaged \(scales \[1.0, 0.0\]: use 0.25 to 4\)"),
        (changed(scales=[float("nan")]), r"damaged \(scales \[nan, 1.0\]: use 0.25 to 4\)"),
        (changed(views=[99]), r"damaged \(views \[99\]: use 0 to 7\)"),
        (changed(views=["x"]), r"damaged \(views \['x'\]: use 0 to 7\)"),
        (changed(views=[0, 0]), r"damaged \(a view or scale is named twice\)"),
        (changed(seconds_per_tile="x"), "damaged .*could not convert"),
        (changed(seconds_per_tile=float("nan")), r"damaged \(seconds_per_tile is no number of seconds"),
        (changed(tells_debris="x"), "damaged .*tells_debris neither true nor false"),
    ],
)
def test_bad_input_is_one_clear_line(submission, tmp_path, capsys, change, message):
    made = competition_folder(tmp_path / "data", "phase2")
    torch.save(content(bundle()), submission / "model.pth")
    imagepath = bands_of(made.root)
    change(made.root, imagepath, submission / "model.pth")
    module = imported(submission)
    with pytest.raises(module.SubmissionError, match=message) as err:
        module.maskgeration(imagepath, tmp_path / "out")
    assert "\n" not in str(err.value)
    assert not any(p.name.endswith("partial.tif") for p in tmp_path.rglob("*"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_limit_that_is_no_number_is_refused(submission, tmp_path, monkeypatch, value):
    made = competition_folder(tmp_path / "data", "phase2", ids=["1"])
    torch.save(content(bundle()), submission / "model.pth")
    monkeypatch.setenv("GLACIER_SECONDS_PER_TILE", value)
    module = imported(submission)
    with pytest.raises(
        module.SubmissionError, match=f"GLACIER_SECONDS_PER_TILE={value}: use a number of seconds, 0 for"
    ):
        module.maskgeration(bands_of(made.root), submission / "model.pth")


def test_what_cannot_be_written_leaves_nothing_half_written(submission, tmp_path, monkeypatch):
    made = competition_folder(tmp_path / "data", "phase2")
    torch.save(content(bundle()), submission / "model.pth")
    module, out = imported(submission), tmp_path / "out"
    with pytest.raises(module.SubmissionError, match="Band2: holds the tiles, which the maps would replace"):
        module.maskgeration(bands_of(made.root), made.root / "Band2")
    (tmp_path / "file").write_text("")
    with pytest.raises(module.SubmissionError, match="out: cannot be written .Not a directory"):
        module.maskgeration(bands_of(made.root), tmp_path / "file" / "out")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(module.SubmissionError, match="out: cannot be written .No space left on device"):
        module.maskgeration(bands_of(made.root), out)
    assert list(out.iterdir()) == []
    monkeypatch.undo()
    no_image(made.root, None, None)
    with pytest.raises(module.SubmissionError, match="cannot be read"):
        module.maskgeration(bands_of(made.root), out)
    assert [p.name for p in out.iterdir()] == ["img001.tif"]  # the tile before it


def test_the_command_line_says_what_is_wrong(submission, tmp_path, capsys):
    module = imported(submission)
    (tmp_path / "empty").mkdir()
    assert module.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert module.main(["--imagepath", str(tmp_path / "empty"), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"solution.py: {tmp_path / 'none'}: no such folder",
        "solution.py: no Band1 among no folders; all five are needed",
    ]
    assert not (tmp_path / "out").exists()
