"""The run folder: who may write it, what a run that goes on must have in common with the one that began, the record."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.folds import NEVER
from ..data.block import GlacierDataLoaders
from ..data.folds import folds_hash
from ..errors import CheckpointError, OutputError, cell
from ..files import digest, locked, no_link, write_text
from ..model.processes import world_size
from ..model.registry import of_recipe
from ..recipe import Recipe, recipe_from
from .checkpoint import differences, load_checkpoint
from .record import EventLog, environment

__all__ = ["BEST", "LAST", "RunFolder", "run_identity"]

LAST, BEST = "last.ckpt", "best.safetensors"


def run_identity(
    recipe: Recipe,
    dls: GlacierDataLoaders,
    fold: int | None,
    weights: Path | None,  # bundle that it starts from
    encoder: str | None = None,  # SHA-256 of the file that its encoder starts from
) -> dict[str, Any]:
    """Return what decides the result of a run: it can only go on where all of this is the same."""
    return {
        "recipe": comparable(recipe),
        "fold": fold,
        "tiles": digest(_without_new(dls.store.table).to_csv(index=False)),
        "folds": folds_hash(dls.store, dls.fold_of),
        "weights": None if weights is None else digest(Path(weights).read_bytes()),
        "encoder": encoder,
        "processes": world_size(),
    }


def _without_new(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out what stores of before did not have, where it says nothing: their runs can go on."""
    return table if table["n_ice"].any() else table.drop(columns="n_ice")


def comparable(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe decides the result of a run, as a recipe: its network is named with all its options."""
    without: Any = {"about": True, "record": True, "data": {"path"}, "model": True}
    without["train"] = {"max_minutes", "workers"}
    network, options = of_recipe(recipe.model)
    return {**recipe.model_dump(mode="json", exclude=without), "model": {"arch": network.name, "options": options}}


class RunFolder:
    """A run folder; `claim` keeps other processes out until `release`."""

    def __init__(self, path: Path):
        self.path, self.last, self.best = path, path / LAST, path / BEST
        self.figures = path / "figures"
        self._held = ExitStack()
        self._new = False

    def check(
        self,
        resume: bool,  # go on with the run in it, if there is one
    ) -> None:
        """Raise `OutputError` if there is something that the run may not go on with."""
        if not self.path.exists():
            return
        if not resume:
            raise OutputError(f"{self.path}: exists already; choose another folder, remove it, or resume it")
        if not self.path.is_dir() or (any(self.path.iterdir()) and not self.figures.exists()):
            raise OutputError(f"{self.path}: not a run folder, so it cannot be resumed; choose another folder")

    def claim(self) -> None:
        """Make the folder if need be, and lock it; raises `OutputError` if another process has it."""
        self._new = not self.path.exists()
        busy = f"{self.path}: in use by another process; wait until it ends, or choose another folder"
        with ExitStack() as held:
            held.enter_context(locked(self.path / ".lock", busy))
            for ours in (self.figures, self.path / "tensorboard", self.path / "events.jsonl"):
                no_link(ours)
            self.figures.mkdir(exist_ok=True)
            self._held = held.pop_all()

    def release(self) -> None:
        """Let others have it."""
        self._held.close()

    def discard(self) -> None:
        """Remove the folder of a run that failed before it saved anything, if it made it."""
        if self._new and not self.best.exists() and not self.last.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def checkpoint(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the run goes on from, None if there is nothing; raises `CheckpointError` for another run's."""
        if not self.last.exists():
            return None
        checkpoint = load_checkpoint(self.last)
        there = checkpoint["identity"]
        there = {**there, "recipe": comparable(recipe_from(there.get("recipe", {}), str(self.last)))}
        if found := differences(there, identity):
            raise CheckpointError(
                f"{self.last}: of another run ({'; '.join(found)}); resume it with the same settings, or choose "
                "another folder"
            )
        return checkpoint

    def log(self, event: str, **fields: Any) -> None:
        """Append to events.jsonl."""
        EventLog(self.path / "events.jsonl")(event, **fields)

    def record(
        self,
        recipe: Recipe,
        dls: GlacierDataLoaders,
        checkpoint: dict[str, Any] | None,
        encoder: str | None = None,  # as in `run_identity`
    ) -> None:
        """Write what is known before the first batch."""
        about = {**environment(), "folds_hash": folds_hash(dls.store, dls.fold_of)}
        about["tiles"] = str(dls.store.base().path.resolve())
        about |= {"encoder_sha256": encoder} if encoder else {}
        if checkpoint is not None:
            self.log("resume", epoch=checkpoint["at"][0] + 1, batch=checkpoint["at"][1], environment=about)
            return
        recipe.save(self.path / "recipe.yaml")
        write_text(self.path / "environment.json", json.dumps(about, indent=1))
        part = np.where(dls.fold_of == NEVER, "test", "left out").astype(object)
        part[dls.train_tiles], part[dls.valid_tiles] = "train", "valid"
        table = pd.DataFrame({"id": dls.store.table["id"].map(cell), "fold": dls.fold_of, "part": part})
        write_text(self.path / "folds.csv", table.to_csv(index=False))
        self.log("start", environment=about, notes=[*dls.store.base().info.get("notes", []), *dls.notes])
