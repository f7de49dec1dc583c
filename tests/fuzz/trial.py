"""A spoilt input, the command that reads it, and what becomes of that."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from .harness import GOOD, Outcome, run
from .inputs import KINDS, Kind, make, spoil

__all__ = ["GOOD", "KINDS", "Trials"]


class Trials:
    """Makes the good inputs once; each call spoils a copy of them."""

    def __init__(self, work: Path):
        self.work, self.good = work, work / "good"
        self.good.mkdir()
        make(self.good)
        self.wanted = {}
        for name, kind in KINDS.items():
            outcome = self._run(kind, lambda folder, kind=kind: [*kind.words, *([] if kind.spoilt else ["seed=1"])])
            if outcome.kind != "accepted":
                raise AssertionError(f"{name}: the good input is {outcome.kind}: {outcome.said}")
            self.wanted[name] = outcome.out

    def __call__(self, name: str, seed: str | Random) -> tuple[Outcome, str]:
        """Return what became of an input of a kind, and how it was spoilt."""
        rng, said = Random(seed) if isinstance(seed, str) else seed, []

        def harm(folder: Path) -> list[str]:
            words, what = spoil(KINDS[name], folder, rng)
            said.append(what)
            return words

        outcome = self._run(KINDS[name], harm)
        if outcome.kind == "accepted" and KINDS[name].same and outcome.out != self.wanted[name]:
            outcome = Outcome("wrong", "accepted, with other results")
        return outcome, said[0]

    def _run(self, kind: Kind, words: Callable[[Path], list[str]]) -> Outcome:
        """Copy what a command reads, spoil it, and run it."""
        folder = self.work / "case"
        folder.mkdir()
        parts = {path.split("/")[0] for path in (*kind.words, *kind.spoilt)} | {"b.safetensors", "scene.tif"}
        for part in parts:
            if (good := self.good / part).is_dir():
                shutil.copytree(good, folder / part)
            elif good.is_file():
                shutil.copy(good, folder / part)
        try:
            return run(words(folder), folder)
        finally:
            shutil.rmtree(folder)
