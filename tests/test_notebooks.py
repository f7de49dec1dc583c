"""The notebooks, each executed from its first cell to its last in small settings."""

import ast
import os
import sys
from pathlib import Path

import nbformat
import pytest
from folders import competition_folder
from hkh_folders import hkh_folder
from nbclient import NotebookClient
from scenes import TINY

from glacier_fastai.recipe import recipe_dir, recipe_names

NOTEBOOKS = sorted((recipe_dir() / "notebooks").glob("*.ipynb"))
SMALL = ("data.crop=32", "data.crops_per_tile=1", "train.epochs=1", "train.batch_size=8", "record.panels_every=0")
SMALL = (*SMALL, f"model.encoder={TINY}")  # which recipes name, and then a size does not count
SMALLER = ("data.tile_size=32", *SMALL)
PAIRS = [f"{row:02}_{col:02}" for row in (1, 4, 7) for col in (1, 2)]  # tiles of one touch those of no other


def words(settings):
    return " ".join(f"--set {s}" for s in settings)


def _quickstart(tmp_path, request):
    return {"n_scenes": 5, "scene_size": 64, "tile_size": 32, "crop": 32, "encoder": TINY, "epochs": 1}


def _hkh(tmp_path, request):
    hkh_folder(tmp_path, scenes=2, splits=False)
    return {"data": "glacier_data", "max_minutes": 5, "settings": words(SMALLER)}


def _competition(tmp_path, request):
    competition_folder(tmp_path / "competition", ids=PAIRS, size=32)
    weights = str(request.getfixturevalue("trained")[0] / "best.safetensors")
    return {"weights": weights, "folds": 2, "max_minutes": 5, "settings": words(("predict.views=true", *SMALLER))}


def _ensemble(tmp_path, request):
    competition_folder(tmp_path / "competition", ids=PAIRS, size=32)
    resnet = "model.encoder=resnet18"  # a submission carries no other encoder than ResNets
    return {"weights": "", "folds": 2, "max_minutes": 5, "settings": ["predict.views=true", *SMALLER, resnet]}


def _scene(tmp_path, request):
    return {"size": 192, "tile_size": 64, "settings": words(("data.folds=3", *SMALL))}


# what there is before a notebook, its parameters, and the figures that it shows
CASES = {
    "01_quickstart": (_quickstart, 6),
    "02_hkh_pretrain": (_hkh, 3),
    "03_competition_finetune": (_competition, 4),
    "04_ensemble_and_submit": (_ensemble, 1),
    "05_own_scene": (_scene, 4),
}


def read(path):
    return nbformat.read(path, as_version=4)


def parameters(notebook):
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    return cell


def outputs(notebook):
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def executed(path, folder, values):
    """Execute a notebook in a folder, with other values of its parameters, as a user does who edits them."""
    notebook = read(path)
    cell = parameters(notebook)
    assert set(values) <= {n.id for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name)}
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    place = {"metadata": {"path": folder}}
    env = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline", "CUDA_VISIBLE_DEVICES": ""}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])  # where the commands are
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute(env=env)
    return notebook


def test_every_notebook_has_a_case_and_none_is_taken_for_a_recipe():
    assert [p.stem for p in NOTEBOOKS] == sorted(CASES)
    assert not set(recipe_names()) & set(CASES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_kept_without_what_it_printed(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code)
    ast.parse(parameters(notebook).source)
    text = "\n".join(c.source for c in notebook.cells)
    assert "from glacier_fastai.all import *" in text
    assert not any(
        word in text for word in ("import glacier_fastai", "from glacier_fastai.core", "learn.fit_one_cycle(")
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, request):
    small, figures = CASES[path.stem]
    values = small(tmp_path, request)
    notebook = executed(path, tmp_path, values)
    text = "".join(o["text"] for o in outputs(notebook) if o["output_type"] == "stream")
    assert "glacier-fastai: " not in text, text[-3000:]  # a command that failed; a notebook goes on after it
    assert sum("image/png" in o.get("data", {}) for o in outputs(notebook)) >= figures
