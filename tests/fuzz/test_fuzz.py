import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .harness import run
from .trial import GOOD, KINDS, Trials


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return Trials(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_spoilt_is_accepted_or_refused_in_one_line(trials, kind):
    for n in range(4):
        outcome, what = trials(kind, f"tests {kind} {n}")
        assert outcome.kind in GOOD, f"{what}: {outcome}"


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(list(KINDS)), rng=st.randoms(use_true_random=False))
def test_what_hypothesis_spoils_is_accepted_or_refused_in_one_line(trials, kind, rng):
    outcome, what = trials(kind, rng)
    assert outcome.kind in GOOD, f"{kind}: {what}: {outcome}"


def says(text, code=2, file=None):
    print(text, file=sys.stderr)
    if file:
        Path(file).write_text("")
    raise SystemExit(code)


@pytest.mark.parametrize(
    ("outcome", "main"),
    [
        ("accepted", lambda: None),
        ("refused", lambda: says("glacier-fastai: f: damaged")),
        ("noisy", lambda: says("glacier-fastai: f: \x1b[2J")),
        ("noisy", lambda: says("glacier-fastai: f\nis damaged")),
        ("noisy", lambda: says("glacier-fastai: f: damaged", 1)),
        ("noisy", lambda: says("x" * 500)),
        ("left", lambda: says("glacier-fastai: f: damaged", file=".f.partial")),
        ("traceback", lambda: 1 / 0),
        ("killed", lambda: os.abort()),
        ("network", lambda: socket.create_connection(("127.0.0.1", 9))),
    ],
)
def test_what_goes_wrong_is_seen(tmp_path, monkeypatch, outcome, main):
    (tmp_path / "case").mkdir()
    monkeypatch.setattr("glacier_fastai.cli.main", main)
    assert run(["recipes"], tmp_path / "case").kind == outcome
