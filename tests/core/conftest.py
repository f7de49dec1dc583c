import pytest

from glacier_fastai.core import radiometry, warp


def take(monkeypatch, compiled):
    """Make augmentation take compiled loops, or torch as on other devices."""
    for module in (warp, radiometry):
        monkeypatch.setattr(module, "compiled", lambda x: compiled)


@pytest.fixture(params=["compiled", "torch"])
def path(request, monkeypatch):
    """Both ways to the same result."""
    if request.param == "torch":
        take(monkeypatch, False)


@pytest.fixture
def way(monkeypatch):
    """Choose between the two ways: `way(compiled)`."""
    return lambda compiled: take(monkeypatch, compiled)
