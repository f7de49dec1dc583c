"""Shared by all tests: one thread, no display, tiny made-up scenes with a real CRS and nodata."""

import os
import random

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scenes import EVEREST, make_store, write_scene

from glacier_fastai.terminal import show_messages

torch.set_num_threads(1)
torch.ones(1, requires_grad=True).backward()  # after torch.export a process's first one lets no fork have any
collect_ignore = ["legacy/make.py"]  # runs with the version that it shows
show_messages()  # as commands and notebooks do


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Random weights and draws are those of the test alone, whatever ran before it; its first fixtures included."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    plt.close("all")


@pytest.fixture
def scene(tmp_path):
    """Paths of a made-up scene of 96 x 80 px and of its label raster; both with nodata."""
    return write_scene(tmp_path / "scene.tif")


@pytest.fixture
def store(tmp_path):
    """A store of 12 tiles of 32 px from 3 made-up scenes, all classes, some nodata."""
    return make_store(tmp_path / "store")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Run folder of a tiny model trained for 2 epochs on fold 0 of a made-up store, and that store."""
    from scenes import tiny_recipe

    from glacier_fastai.train.run import finetune

    base = tmp_path_factory.mktemp("trained")
    data = make_store(base / "store")
    return finetune(tiny_recipe(), fold=0, data=data.path, out=base / "run"), data


@pytest.fixture(scope="session")
def crossvalidated(tmp_path_factory):
    """Folder of a cross-validation of tiny models, three folds of two epochs, and the store they were trained on."""
    from scenes import tiny_recipe

    from glacier_fastai.train.run import crossval

    base = tmp_path_factory.mktemp("crossvalidated")
    data = make_store(base / "store", scenes=6)
    return crossval(tiny_recipe("predict.views=true"), data=data.path, out=base / "cv"), data


@pytest.fixture(scope="session")
def blind(tmp_path_factory):
    """Folder of a cross-validation as above, on a store of which all ice is of unknown kind, and that store."""
    from scenes import tiny_recipe

    from glacier_fastai.train.run import crossval

    base = tmp_path_factory.mktemp("blind")
    data = make_store(base / "store", scenes=6, kinds=False)
    return crossval(tiny_recipe("train.epochs=4"), data=data.path, out=base / "cv"), data


@pytest.fixture(scope="session")
def everest():
    if not EVEREST.is_dir():
        pytest.skip("the Everest scene (shared/data/everest) is not on this machine")
    return EVEREST
