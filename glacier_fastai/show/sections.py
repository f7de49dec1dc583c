"""What a report shows of its runs, as tables, pictures and tiles; the words around them stand in its template."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from ..bands import CLASSES, UNKNOWN_ICE
from ..core.calibration import expected_calibration_error
from ..core.confusion import recall, with_ice
from ..errors import printable
from ..files import file_hash, names_only
from ..model.bundle import described
from ..model.ratio import why_not
from ..plots import figures
from .runs import Run
from .validation import SHOWN, Validation, data_uri, evenly

__all__ = ["Picture", "across", "contents", "number", "percent", "plain"]

LISTED = 10  # hardest tiles in the table
COLUMNS = 60  # of a history that are looked at
LOSSES = ("focal", "dice", "mcc", "boundary", "bf1")
SCORES = {
    "mcc": "MCC",
    "ice_mcc": "ice MCC",
    "mean_iou": "mean IoU",
    "ice_iou": "ice IoU",
    "mcc_image_mean": "MCC, mean of tiles",
}
CLASS_SCORES = {"iou": "IoU", "precision": "precision", "recall": "recall", "f1": "F1", "pixels": "pixels"}
CURVES = {"mcc": "MCC", "ice_mcc": "MCC of ice", "mean_iou": "mean IoU"}

Tables = dict[str, pd.DataFrame]  # a table in named groups of rows; a column per run, but where it says otherwise


@dataclass(frozen=True)
class Picture:
    """A figure (data URI)."""

    uri: str
    caption: str
    alt: str


def contents(
    runs: Sequence[Run],
    groups: Mapping[str, Sequence[int]],  # positions of the runs that have a mean together, by name
    shares: Sequence[np.ndarray | None],  # of each run, as from `train_shares`
    validations: Sequence[Validation | None],  # of each run
) -> dict[str, Any]:
    """Return what the template shows, by its names there; what no run has is empty."""
    together = {name: chosen for name, chosen in groups.items() if len(chosen) > 1}
    known = [v for v in validations if v]
    words = SCORES | (
        {"ratio_ice_mcc": "ice MCC, band ratio"} if any("ratio_ice_mcc" in r.scores for r in runs) else {}
    )
    composition, batches = _composition(runs, shares)
    return {
        "facts": _facts(runs),
        "recipes": _recipes(runs),
        "together": together,
        "scores": {"": _with_means(across(runs, partial(_named, words)), together)},
        "class_scores": _class_scores(runs, together),
        "without_ratio": _without_ratio(runs),
        "losses": _losses(runs),
        "curves": _curves(runs),
        "confusion": _confusion(runs, groups),
        "reliability": _reliability(validations),
        "calibration": _calibration(runs, validations),
        "composition": composition,
        "composition_pictures": _shares(shares, batches),
        "unknown_data": any(s is None for s in shares),
        "unknown_batches": any(b is None for b in batches),
        "examples": [t for _, t in evenly(sorted((e for v in known for e in v.examples), key=lambda e: e[0]), SHOWN)],
        "hardest": _hardest(known),
        "hardest_tiles": [t for _, t in sorted((h for v in known for h in v.hardest), key=lambda h: -h[0])[:SHOWN]],
        "predicted": sum(len(v.table) for v in known),
        "total": sum(v.total for v in known),
        "importance": _importance(validations),
        "times": {"": across(runs, _times)},
    }


# Tables


def across(
    runs: Sequence[Run],
    of: Callable[[Run], Mapping[str, Any]],  # values of a run by name
) -> pd.DataFrame:
    """Return a row per name and a column per run, of values as they are."""
    return pd.concat([pd.Series(dict(of(r)), name=r.name, dtype=object) for r in runs], axis=1, sort=False)


def plain(value: Any) -> str:
    """Return a value in words, a dash where it is not known.

    >>> plain(1e-4), plain(None), plain(["ndsi"])
    ('0.0001', '–', '["ndsi"]')
    """
    if value is None or value != value:
        return "–"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def number(value: Any) -> str:
    """Return a score or a count in words, a dash where it is not known.

    >>> number(0.25), number(12345), number(float("nan")), number("0.250 ± 0.010")
    ('0.250', '12,345', '–', '0.250 ± 0.010')
    """
    if isinstance(value, float | np.floating) and value == value:
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int | np.integer) else plain(value)


def percent(value: Any) -> str:
    """Return a share in words, a dash where it is not known.

    >>> percent(0.25), percent(None)
    ('25.00%', '–')
    """
    return plain(value) if value is None or value != value else f"{value:.2%}"


def _facts(runs: Sequence[Run]) -> Tables:
    leaves = across(runs, _leaves)
    tables = {
        "Recipe": across(runs, _recipe),
        "Where recipes differ": leaves[leaves.map(plain).nunique(axis=1) > 1],
        "Data": across(runs, _data),
        "Result": across(runs, lambda r: {"best epoch": r.scores.get("epoch"), "SHA-256 of the model": _hash(r)}),
        "Environment": across(runs, _environment),
    }
    return {name: table for name, table in tables.items() if len(table)}


def _leaves(r: Run) -> dict[str, Any]:
    """Return the fields of a recipe by their dotted names."""
    return {str(name): value for name, value in pd.json_normalize([r.recipe]).iloc[0].to_dict().items()}


def _recipe(r: Run) -> dict[str, Any]:
    loss = {part: r.get("loss", part) for part in LOSSES}
    start = ", ".join(f"{part} from {at}" for part, at in (r.get("ramp", "start") or {}).items())
    return {
        "about": r.get("about"),
        "bands": ", ".join(r.get("bands") or []),
        "model": described(r.bundle.arch, r.bundle.options) if r.bundle else r.get("model"),
        "loss": ", ".join(f"{weight} {part}" for part, weight in loss.items() if weight),
        "ramp": f"{start} of its weight, over {r.get('ramp', 'epochs')} epochs" if start else "none",
        **{k: n for k in ("epochs", "steps") if (n := r.get("train", k))},
        "batch size": r.get("train", "batch_size"),
        "learning rate": r.get("train", "lr"),
        "seed": r.get("seed"),
    }


def _data(r: Run) -> dict[str, Any]:
    about = r.trained_on
    return {
        "tile store": names_only(str(about.path if about and about.path else r.get("data", "path") or "")),
        "hash of its tiles": about and about.hash,
        "hash of the folds": r.environment.get("folds_hash"),
        "fold": about and ("none, trained on all" if about.fold is None else about.fold),
        "tiles": ", ".join(f"{n} {part}" for part, n in sorted(r.parts.items())),
    }


def _hash(r: Run) -> str | None:
    return file_hash(r.model)[:16] if r.bundle else None


def _environment(r: Run) -> dict[str, Any]:
    e, git = r.environment, r.environment.get("git")
    versions = {"python": e.get("python"), **e.get("packages", {})}
    return {
        "command": shlex.join(names_only(printable(str(word))) for word in e.get("command", [])[:100]),
        **{name: e.get(name) for name in ("device", "processes", "threads", "platform")},
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
        "commit": git and git["commit"][:12] + (", changed since" if git["changed"] else ""),
    }


def _recipes(runs: Sequence[Run]) -> dict[str, str]:
    """Return the different recipes, by the names of their runs."""
    names: dict[str, list[str]] = {}
    for r in runs:
        text = yaml.safe_dump(r.recipe, sort_keys=False, allow_unicode=True)
        names.setdefault(names_only(text), []).append(r.name)
    return {", ".join(found): text for text, found in names.items()}


def _named(words: Mapping[str, str], r: Run, of: str | None = None) -> dict[str, Any]:
    """Return scores of a run, or of one of its classes, by their words."""
    found = r.scores if of is None else {**r.scores.get("classes", {}), "ice": r.scores.get("ice", {})}.get(of, {})
    return {word: found.get(key) for key, word in words.items()}


def _class_scores(runs: Sequence[Run], together: Mapping[str, Sequence[int]]) -> Tables:
    """Return the scores of each class, and of ice of any kind."""
    tables = {name.capitalize(): across(runs, partial(_named, CLASS_SCORES, of=name)) for name in (*CLASSES, "ice")}
    return _of_one(tables) if len(runs) == 1 else {name: _with_means(t, together) for name, t in tables.items()}


def _without_ratio(runs: Sequence[Run]) -> dict[str, str]:
    """Return why runs have no band ratio beside them, by reason, with their names."""
    found: dict[str, list[str]] = {}
    for r in runs:
        if r.bundle and r.bundle.profile.units and r.bundle.baseline is None and r.bundle.arch != "ratio":
            reason = why_not(r.bundle.profile.units) or "no threshold tells ice from the rest on the training tiles"
            found.setdefault(reason, []).append(r.name)
    return {reason: ", ".join(names) for reason, names in found.items()}


def _of_one(tables: Tables) -> Tables:
    """Return the tables of a single run as one, with a row for each of them."""
    return {"": pd.concat({name: t.iloc[:, 0] for name, t in tables.items()}, axis=1).T}


def _with_means(table: pd.DataFrame, together: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Return a table with columns in front: mean and spread of runs, or the sum of counts."""

    def words(row: pd.Series) -> str:
        return f"{row.sum():,} in all" if any(isinstance(v, int) for v in row) else _spread(row)

    means = {
        f"{name}: mean ± std" if len(together) > 1 else "mean ± std": table.iloc[:, list(chosen)].apply(words, axis=1)
        for name, chosen in together.items()
    }
    return pd.concat([pd.DataFrame(means, table.index, dtype=object), table], axis=1)


def _spread(values: Sequence[float | None] | pd.Series) -> str:
    """Return mean and standard deviation of what is known."""
    known = pd.Series(values, dtype=float).dropna()
    return f"{known.mean():.3f} ± {known.std():.3f}" if len(known) > 1 else number(known.mean())


def _hardest(known: Sequence[Validation]) -> pd.DataFrame:
    """Return rows of `GlacierInterpretation.table`, the largest loss first."""
    if not known:
        return pd.DataFrame()
    table = pd.concat([v.table for v in known]).dropna(subset="loss")
    return table.sort_values("loss", ascending=False, kind="stable").head(LISTED)


def _times(r: Run) -> dict[str, Any]:
    kinds = [e["event"] for e in r.events]
    moments = [e["time"].replace("T", " ").replace("Z", " UTC") for e in r.events]
    seconds = list({e["epoch"]: e["seconds"] for e in r.events if e["event"] == "epoch"}.values())
    peaks = [e["gpu_peak_mb"] for e in r.events if "gpu_peak_mb" in e]
    return {
        "first event": moments[0] if moments else None,
        "last event": moments[-1] if moments else None,
        "epochs": len(seconds),
        "all epochs": f"{sum(seconds) / 60:.1f} min",
        "an epoch, median": f"{np.median(seconds):.1f} s" if seconds else None,
        "batches skipped": kinds.count("skipped"),
        "stops": kinds.count("stop"),
        "resumptions": kinds.count("resume"),
        "peak of GPU memory": f"{max(peaks):,} MB" if peaks else None,
    }


# Pictures


def _picture(figure: Figure, caption: str, alt: str) -> Picture:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=160)
    plt.close(figure)
    return Picture(data_uri("png", file), caption, alt)


def _curve(runs: Sequence[Run], caption: str, train: str | None, valid: str | None, **how: Any) -> list[Picture]:
    """Draw a column of training and one of validation, unless no run has them."""
    if not any(column in r.history for r in runs for column in (train, valid)):
        return []
    said = []
    for phase, column in {"training" if valid else "it goes": train, "validation": valid}.items():
        known = [h for r in runs if column in r.history and len(h := r.history[column].dropna())]
        if known:
            first, last = (np.mean([h.iloc[k] for h in known]) for k in (0, -1))
            said.append(f"{phase} from {first:.3g} in the first epoch to {last:.3g} in the last")
    alt = f"{caption} by epoch: {'; '.join(said)}{', mean of the runs' if len(runs) > 1 else ''}."
    return [_picture(figures.curves([r.history for r in runs], train, valid, caption, **how), caption, alt)]


def _losses(runs: Sequence[Run]) -> list[Picture]:
    columns = list(dict.fromkeys(str(c) for r in runs for c in r.history))[:COLUMNS]
    drawn = _curve(runs, "loss", "train_loss", "valid_loss")
    for part in LOSSES:
        drawn += _curve(runs, f"{part} loss", f"train_{part}_loss", f"{part}_loss")
    for column in columns:
        if (part := column.removeprefix("ramp_")) != column and part.isidentifier() and len(part) < 40:
            drawn += _curve(runs, f"ramp of the {part} loss", column, None)
    return drawn + _curve(runs, "learning rate", "lr", None, log=True)


def _curves(runs: Sequence[Run]) -> list[Picture]:
    best = [r.scores.get("epoch") for r in runs]
    return [p for key, name in CURVES.items() for p in _curve(runs, name, f"train_{key}", key, best=best)]


def _confusion(runs: Sequence[Run], groups: Mapping[str, Sequence[int]]) -> list[Picture]:
    alone = [k for k in range(len(runs)) if not any(k in chosen for chosen in groups.values())]
    drawn = []
    for name, chosen in [*groups.items(), *((runs[k].name, [k]) for k in alone)]:
        known = [np.array(m) for k in chosen if (m := runs[k].scores.get("confusion"))]
        if known:
            rows = max(map(len, known))
            matrix = np.sum([np.pad(m, ((0, rows - len(m)), (0, 0))) for m in known], 0)
            share = with_ice(recall, matrix)
            found = ", ".join(f"{percent(v)} of {c}" for c, v in zip((*CLASSES, "any ice"), share, strict=True))
            caption = f"{name or 'all'}: {len(known)} runs added up" if len(known) > 1 else runs[chosen[0]].name
            caption += f", n = {matrix.sum():,} px"
            drawn.append(_picture(figures.confusion(matrix), caption, f"Confusion matrix: right are {found}."))
    return drawn


def _calibration(runs: Sequence[Run], validations: Sequence[Validation | None]) -> Tables:
    """Return the expected calibration error of each class."""
    by_name = {r.name: v.reliability if v else {} for r, v in zip(runs, validations, strict=True)}
    known = {name: {of: t for of, t in found.items() if t.pixels.any()} for name, found in by_name.items()}
    table = across(runs, lambda r: {of: expected_calibration_error(t) for of, t in known[r.name].items()})
    return {"": table} if len(table) else {}


def _reliability(validations: Sequence[Validation | None]) -> list[Picture]:
    drawn = []
    for of in dict.fromkeys(of for v in validations if v for of in v.reliability):
        tables = {str(k): v.reliability[of] if v else None for k, v in enumerate(validations)}
        known = [t for t in tables.values() if t and t.pixels.any()]
        if not known:
            continue
        said = _spread([expected_calibration_error(t) for t in known])
        drawn.append(
            _picture(
                figures.reliability(tables, of if of in CLASSES else f"the {of}", key=False),
                f"{of}, n = {sum(int(t.pixels.sum()) for t in known):,} px",
                f"Reliability of the {of}: calibration error {said}.",
            )
        )
    return drawn


def _composition(runs: Sequence[Run], shares: Sequence[np.ndarray | None]) -> tuple[Tables, list[np.ndarray | None]]:
    """Return the share of each class and of ice of unknown kind in the data, in batches, and the target.

    And those in batches, `(K + 1,)` per run.
    """
    columns = [f"share_{name}" for name in (*CLASSES, "ice")]
    batches = [
        r.history.reindex(columns=columns, fill_value=0).mean().to_numpy() if {*columns[:-1]} <= {*r.history} else None
        for r in runs
    ]
    if all(v is None for v in [*shares, *batches]):
        return {}, batches
    targets = across(runs, lambda r: r.get("balance", "target") or {}).reindex([*CLASSES, UNKNOWN_ICE])
    tables = {}
    for k, name in enumerate(_names([*shares, *batches])):
        values = {
            what: [None if v is None else v[k] for v in of]
            for what, of in (("in the data", shares), ("in batches", batches))
        }
        rows = {**values, "target": list(targets.loc[name])} if targets.notna().to_numpy().any() else values
        tables[name.capitalize()] = pd.DataFrame(rows, [r.name for r in runs], dtype=object).T
    return _of_one(tables) if len(runs) == 1 else tables, batches


def _names(shares: Sequence[np.ndarray | None]) -> Sequence[str]:
    """Return the classes, and ice of unknown kind where there is a share of it."""
    return (*CLASSES, UNKNOWN_ICE) if any(s is not None and s[-1] for s in shares) else CLASSES


def _shares(shares: Sequence[np.ndarray | None], batches: Sequence[np.ndarray | None]) -> list[Picture]:
    known = [b for b in batches if b is not None]
    if not known and all(s is None for s in shares):
        return []
    names = _names([*shares, *batches])
    said = ", ".join(f"{c} {percent(v)}" for c, v in zip(names, np.mean(known, 0), strict=False)) if known else "none"
    caption = "square: in the data, dot: in batches"
    return [_picture(figures.shares(shares, batches, names), caption, f"Classes in batches: {said}.")]


def _importance(validations: Sequence[Validation | None]) -> list[Picture]:
    tables = [v.importance if v else None for v in validations]
    known = [t for t in tables if t is not None]
    if not known:
        return []
    drop: pd.Series = pd.concat(known).groupby("band", sort=False)["drop"].mean().sort_values(ascending=False)
    said = ", ".join(f"{band} {value:.3f}" for band, value in drop.items())
    caption = f"fall of the MCC, n = {sum(int(t['tiles'].iloc[0]) for t in known)} tiles"
    return [_picture(figures.importance(tables), caption, f"Fall of the MCC without a band: {said}.")]
