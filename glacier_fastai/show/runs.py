"""Run folders read back, whole or cut short; nothing is written into them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import Field, ValidationError, field_validator, model_validator

from ..bands import CLASSES
from ..errors import BundleError, DataError, GlacierError, printable
from ..model.bundle import ModelBundle, TrainedOn
from ..reading import parse_json, read_json, read_table, read_text, read_yaml, refusing
from ..recipe import Section, explain, recipe_from

__all__ = ["Run", "not_comparable", "read_runs"]

BEST = "best.safetensors"
MOST = 1000  # folds
BEYOND = 1e30  # numbers that no history holds
Count = Annotated[int, Field(ge=0, le=10**15)]  # pixels
Numbers = dict[str, int | float | None]


class _Section(Section):
    """What a file of a run holds; fields that a report does not use are left as they are."""

    model_config = {**Section.model_config, "extra": "allow"}


class _Git(_Section):
    commit: str
    changed: bool


class _Environment(_Section):
    python: str | None = None
    packages: dict[str, str] = {}
    device: str | None = None
    command: list[str] = []
    git: _Git | None = None
    folds_hash: str | None = None


class _Scores(_Section):
    epoch: int | None = None
    classes: dict[str, Numbers] = {}
    ice: Numbers = {}
    confusion: list[list[Count]] = []
    mcc: float | None = None
    ice_mcc: float | None = None
    mean_iou: float | None = None
    ice_iou: float | None = None
    mcc_image_mean: float | None = None
    ratio_ice_mcc: float | None = None

    @field_validator("confusion")
    @classmethod
    def _square(cls, matrix: list[list[int]]) -> list[list[int]]:
        if matrix and ({*map(len, matrix)} != {k := len(CLASSES)} or len(matrix) not in (k, k + 1)):
            raise ValueError(f"no matrix of {len(CLASSES)} classes")
        return matrix


class _Event(_Section):
    time: str
    event: str
    epoch: int | None = None
    seconds: float | None = None
    gpu_peak_mb: float | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.event == "epoch" and None in (self.epoch, self.seconds):
            raise ValueError("an epoch without its number or seconds")
        return self


@dataclass(frozen=True)
class Run:
    """What a run folder holds (see `train.run`); what it lacks is empty, and said in `lacks`."""

    path: Path
    name: str  # tells it from the others of a report
    recipe: dict[str, Any]  # as the file has it
    settings: dict[str, Any]  # the same, validated, every default included
    environment: dict[str, Any]
    history: pd.DataFrame  # a row per epoch
    events: list[dict[str, Any]]
    folds: int  # of its data; 0 where it is not known
    parts: dict[str, int]  # tiles by part: train, valid, left out, test
    scores: dict[str, Any]  # metrics.json, else what its bundle was kept for
    bundle: ModelBundle | None  # without its weights, which `model` has
    lacks: list[str]  # in words

    @property
    def model(self) -> Path:
        """The file of its bundle, whether or not it is there."""
        return self.path / BEST

    @property
    def trained_on(self) -> TrainedOn | None:
        """Its tiles, as its bundle says."""
        return self.bundle.trained_on if self.bundle else None

    @property
    def notes(self) -> list[str]:
        """What was odd about its data."""
        said = [each["notes"] for each in (*self.events, self.scores) if isinstance(each.get("notes"), list)]
        return list(dict.fromkeys(str(line) for lines in said for line in lines))

    def get(self, *keys: str) -> Any:
        """Return a field of the recipe by its path, or None."""
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_runs(
    paths: Sequence[str | os.PathLike],  # run folders, and folders of `crossval`, which count as their folds
) -> tuple[list[Run], dict[str, list[int]]]:
    """Return the runs, and by name the positions of those that belong together: the folds of each cross-validation.

    Where there is no cross-validation, all runs do, under an empty name.

    Raises:
        DataError: A folder is no run, or is named twice.
        BundleError: A run of other classes than ours.
    """
    members = {Path(p).resolve(): _members(Path(p)) for p in paths}
    folders = [f for found in members.values() for f in found]
    if len(members) < len(paths) or len(set(folders)) < len(folders):
        raise DataError(f"{', '.join(map(str, paths))}: a run is named twice; name each once")
    above = Path(os.path.commonpath([f.parent for f in folders]))
    runs = [_read(f, printable(f.relative_to(above).as_posix())) for f in folders]
    groups = {
        printable(path.name): [k for k, f in enumerate(folders) if f in found]
        for path, found in members.items()
        if found != [path]
    }
    for chosen in groups.values():
        there = {runs[k].path.name for k in chosen}
        if gone := [str(k) for k in range(runs[chosen[0]].folds) if f"fold{k}" not in there]:
            runs[chosen[0]].lacks.insert(0, f"of its cross-validation fold {', '.join(gone)} is not there")
        for run in (runs[k] for k in chosen):
            named = re.fullmatch(r"fold(\d{1,9})", run.path.name)
            if named and run.trained_on and run.trained_on.fold != int(named[1]):
                run.lacks.insert(0, "its model is that of another fold")
    return runs, groups or {"": list(range(len(runs)))}


def _members(path: Path) -> list[Path]:
    """Return the run folders that a folder stands for."""
    if (path / "recipe.yaml").is_file():
        return [path.resolve()]
    folds = [f.resolve() for f in path.glob("fold*") if (f / "recipe.yaml").is_file()]
    if not folds:
        what = "no run or cross-validation (no recipe.yaml in it)" if path.is_dir() else "no such folder"
        raise DataError(f"{path}: {what}; name a folder that pretrain, finetune or crossval made")
    return sorted(folds, key=lambda f: (len(f.name), f.name))


def _read(path: Path, name: str) -> Run:
    lacks: list[str] = []

    def read(file: str, parse: Callable[[Path], Any], empty: Any) -> Any:
        try:
            return parse(path / file)
        except (GlacierError, ValidationError) as err:
            why = explain(err, _Section) if isinstance(err, ValidationError) else str(err)
            why = why.removeprefix(f"{path / file}: ")[:160]
            lacks.append(f"{file} is damaged ({why})" if (path / file).exists() else f"no {file}")
        return empty

    def typed(model: type[Section]) -> Callable[[Path], dict[str, Any]]:
        return lambda file: model.model_validate(read_json(file, DataError)).model_dump(exclude_unset=True)

    recipe = read("recipe.yaml", _mapping, {})
    settings = read("recipe.yaml", lambda file: _settings(recipe, file), {}) if recipe else {}
    environment = read("environment.json", typed(_Environment), {})
    history = read("history.csv", _history, None)
    lines = read("events.jsonl", lambda file: read_text(file, DataError).splitlines(), [])
    events = [event for line in lines if (event := _event(line))]
    if len(events) < len(lines):
        lacks.append(f"{len(lines) - len(events)} damaged or half-written line of events.jsonl left out")
    table = read("folds.csv", _folds, None)
    parts = {} if table is None else table["part"].value_counts().to_dict()
    scores: dict[str, Any] = {}
    bundle = None
    if not parts or "valid" in parts:
        scores = read("metrics.json", typed(_Scores), {})
    else:
        lacks.append("trained on every tile, without validation, so there is nothing to score it on")
    try:
        bundle = replace(ModelBundle.load(path / BEST), weights={})
    except BundleError as err:
        lacks.append(str(err) if (path / BEST).exists() else f"no {BEST}")
    if bundle and bundle.metrics and not scores:
        metrics = bundle.metrics
        scores = read(BEST, lambda _: _Scores.model_validate(metrics).model_dump(exclude_unset=True), {})
        if "epoch" in scores:
            lacks.append(f"its scores are those of epoch {scores['epoch']}, the best so far")
    for classes in (scores.get("classes"), bundle and bundle.classes):
        if classes and tuple(classes) != CLASSES:
            raise BundleError(f"{path}: a run of {', '.join(classes)}; a report is of the classes {', '.join(CLASSES)}")
    run = Run(
        path=path,
        name=name,
        recipe=recipe,
        settings=settings,
        environment=environment,
        history=pd.DataFrame({"epoch": []}) if history is None else history,
        events=events,
        folds=0 if table is None else int(table["fold"].to_numpy().max(initial=-1)) + 1,
        parts=parts,
        scores=scores,
        bundle=bundle,
        lacks=lacks,
    )
    if not (path / "figures" / "batch.png").exists():  # the last that every run writes
        epochs, steps = (run.get("train", k) for k in ("epochs", "steps"))
        wanted = f"epochs, {steps} steps wanted" if steps else f"of {epochs} epochs"
        lacks.insert(0, f"cut short, or not yet done: {len(run.history)} {wanted}")
    return run


def _mapping(file: Path) -> dict[str, Any]:
    tree = read_yaml(file, DataError)
    if not isinstance(tree, dict):
        raise DataError(f"{file}: no mapping")
    return {str(k): v for k, v in tree.items()}


def _settings(recipe: dict[str, Any], file: Path) -> dict[str, Any]:
    return recipe_from(recipe, str(file)).model_dump(mode="json")


def _history(file: Path) -> pd.DataFrame:
    """Return the history; epochs without a value of a column have NaN there."""
    table = read_table(file, DataError, {"epoch": int})
    with refusing(file, DataError, "a column holds what is no number"):
        table = table.replace("", "nan").astype({name: float for name in table if name != "epoch"})
        return table.where(table.abs() < BEYOND).astype({"epoch": int})  # or an axis has no end


def _folds(file: Path) -> pd.DataFrame:
    table = read_table(file, DataError, {"fold": int, "part": str})
    if not table["fold"].between(-10, MOST).all():
        raise DataError(f"{file}: a fold is not in 0 to {MOST}")
    return table


def _event(line: str) -> dict[str, Any] | None:
    try:
        return _Event.model_validate(parse_json(line, "events.jsonl", DataError)).model_dump(exclude_unset=True)
    except (DataError, ValidationError):
        return None


def not_comparable(
    runs: Sequence[Run],
) -> str | None:
    """Return why scores of these runs cannot be compared, in words, or None."""
    data = {r.name: r.trained_on.hash for r in runs if r.trained_on and r.trained_on.hash}
    folds = {r.name: r.environment["folds_hash"] for r in runs if "folds_hash" in r.environment}
    for what, hashes in (("tiles", data), ("folds", folds)):
        if len(set(hashes.values())) > 1:
            sides = (", ".join(n for n in hashes if hashes[n] == h) for h in dict.fromkeys(hashes.values()))
            return f"these runs are of different {what}, so their scores cannot be compared: {' / '.join(sides)}"
    return None
