"""Tests on a GPU: `pytest -m gpu`. Where there is none, its part is skipped, and the rest runs on the CPU."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: what is deterministic needs it

import pytest
import torch
from fastai.torch_core import defaults


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    """The CPU, which shows that a test is right, and a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here: this part was not run")
    monkeypatch.setattr(defaults, "use_cuda", request.param == "cuda")
    return torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")
