"""The parts of a report: what each of them says, in words, tables and figures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from io import BytesIO
from operator import add
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from ..bands import CLASSES
from ..core.calibration import expected_calibration_error
from ..files import file_hash
from ..plots import figures
from .runs import Run
from .seen import SHOWN, Seen, Tile, data_uri, evenly, number, percent

__all__ = ["Section", "sections"]

LISTED = 10  # hardest tiles in the table
WIPE = "Truth, prediction, image and errors; the slider moves the line between the first two."
LOSSES = ("focal", "dice", "mcc", "boundary", "bf1")
SCORES = {
    "mcc": "MCC",
    "ice_mcc": "ice MCC",
    "mean_iou": "mean IoU",
    "ice_iou": "ice IoU",
    "mcc_image_mean": "MCC, mean of tiles",
}
OF_CLASS = {"iou": "IoU", "precision": "precision", "recall": "recall", "f1": "F1", "pixels": "pixels"}


@dataclass
class Picture:
    """A figure (data URI)."""

    uri: str
    caption: str
    alt: str


@dataclass
class Table:
    """Rows by name, in named groups."""

    caption: str
    head: list[str]
    groups: dict[str, dict[str, list[str]]]
    joined: bool = False  # a row that is the same in all columns has one cell


@dataclass
class Section:
    """A part of the page."""

    title: str
    words: list[str] = field(default_factory=list)
    key: bool = False  # show which colour is which run
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


def sections(
    runs: Sequence[Run],
    sets: dict[str, list[int]],  # positions of the runs that have a mean together, by name
    shares: Sequence[np.ndarray | None],  # of each run, as from `train_shares`
    seen: Sequence[Seen | None],  # of each run
) -> list[Section]:
    """Return all parts, in order; one that has nothing to show says so."""
    return [
        _what_ran(runs),
        _scores(runs, sets),
        _curves(runs),
        _progress(runs),
        _confusion(runs, sets),
        _reliability(runs, seen),
        _composition(runs, shares),
        _tiles(seen),
        _hardest(runs, seen),
        _importance(runs, seen),
        _time(runs),
    ]


def _picture(figure: Figure, caption: str, alt: str) -> Picture:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=160)
    return Picture(data_uri("png", file), caption, alt)


def _names(runs: Sequence[Run]) -> list[str]:
    return [r.name for r in runs]


def _spread(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation of what is known."""
    known = [v for v in values if v is not None and v == v]
    return f"{np.mean(known):.3f} ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else number(np.mean(known or np.nan))


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _flat(tree: dict[str, Any], before: str = "") -> dict[str, str]:
    """Return the leaves of nested mappings by their dotted names, in words."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{before}{key}"
        leaves |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: _plain(value)}
    return leaves


def _grouped(caption: str, head: list[str], groups: dict[str, dict[str, list[str]]]) -> Table:
    """Return a table of groups; of a single column, one with a row for each group."""
    if len(head) > 1:
        return Table(caption, head, groups)
    rows = {name: [cell for (cell,) in group.values()] for name, group in groups.items()}
    return Table(caption, list(next(iter(groups.values()))), {"": rows})


def _what_ran(runs: Sequence[Run]) -> Section:
    def row(get: Callable[[Run], Any]) -> list[str]:
        return [_plain(get(r)) for r in runs]

    def loss(r: Run) -> str:
        weights = {part: r.get("loss", part) for part in LOSSES}
        return ", ".join(f"{weight} {part}" for part, weight in weights.items() if weight)

    def ramp(r: Run) -> str:
        start = ", ".join(f"{part} from {at}" for part, at in (r.get("ramp", "start") or {}).items())
        return f"{start} of its weight, over {r.get('ramp', 'epochs')} epochs" if start else "none"

    def fold(r: Run) -> Any:
        return (
            "none, trained on all" if r.trained_on and r.trained_on.fold is None else r.trained_on and r.trained_on.fold
        )

    def versions(r: Run) -> str:
        e = r.environment
        return ", ".join(f"{k} {v}" for k, v in {"python": e.get("python"), **e.get("packages", {})}.items())

    def source(r: Run) -> str | None:
        git = r.environment.get("git")
        return git and git["commit"][:12] + (", changed since" if git["changed"] else "")

    leaves = [_flat(r.recipe) for r in runs]
    differing = {k: [flat.get(k, "–") for flat in leaves] for k in dict.fromkeys(k for flat in leaves for k in flat)}
    groups = {
        "Recipe": {
            "about": row(lambda r: r.get("about")),
            "bands": row(lambda r: ", ".join(r.get("bands") or [])),
            "model": row(lambda r: f"{r.get('model', 'arch')} U-Net, attention {r.get('model', 'attention')}"),
            "loss": row(loss),
            "ramp": row(ramp),
            "epochs": row(lambda r: r.get("train", "epochs")),
            "batch size": row(lambda r: r.get("train", "batch_size")),
            "learning rate": row(lambda r: r.get("train", "lr")),
            "seed": row(lambda r: r.get("seed")),
        },
        "Where recipes differ": {k: v for k, v in differing.items() if len(set(v)) > 1},
        "Data": {
            "tile store": row(lambda r: (r.trained_on and r.trained_on.path) or r.get("data", "path")),
            "hash of its tiles": row(lambda r: r.trained_on and r.trained_on.hash),
            "hash of the folds": row(lambda r: r.environment.get("folds_hash")),
            "fold": row(fold),
            "tiles": row(lambda r: ", ".join(f"{n} {part}" for part, n in sorted(r.parts.items()))),
        },
        "Result": {
            "best epoch": row(lambda r: r.scores.get("epoch")),
            "SHA-256 of the model": row(lambda r: r.model and file_hash(r.model)[:16]),
        },
        "Environment": {
            "command": row(lambda r: shlex.join(map(str, r.environment.get("command", [])))),
            "device": row(lambda r: r.environment.get("device")),
            "processes": row(lambda r: r.environment.get("processes")),
            "threads": row(lambda r: r.environment.get("threads")),
            "platform": row(lambda r: r.environment.get("platform")),
            "versions": row(versions),
            "commit": row(source),
        },
    }
    recipes: dict[str, list[str]] = {}
    for r in runs:
        recipes.setdefault(yaml.safe_dump(r.recipe, sort_keys=False, allow_unicode=True), []).append(r.name)
    table = Table("What was run, on what", _names(runs), {k: v for k, v in groups.items() if v}, joined=True)
    texts = {f"Whole recipe of {', '.join(names)}": text for text, names in recipes.items()}
    return Section("What was run", tables=[table], texts=texts)


def _scores(runs: Sequence[Run], sets: dict[str, list[int]]) -> Section:
    sets = {name: chosen for name, chosen in sets.items() if len(chosen) > 1}
    head = [f"{name}: mean ± std" if len(sets) > 1 else "mean ± std" for name in sets] + _names(runs)

    def row(get: Callable[[dict[str, Any]], float | None]) -> list[str]:
        values = [get(r.scores) for r in runs]
        if any(isinstance(v, int) for v in values):
            sums = [f"{sum(values[k] or 0 for k in chosen):,} in all" for chosen in sets.values()]
            return sums + ["–" if v is None else f"{v:,}" for v in values]
        return [_spread([values[k] for k in chosen]) for chosen in sets.values()] + [number(v) for v in values]

    def of_class(name: str) -> dict[str, list[str]]:
        return {w: row(lambda s, k=k: s.get("classes", {}).get(name, {}).get(k)) for k, w in OF_CLASS.items()}

    whole = {word: row(lambda s, key=key: s.get(key)) for key, word in SCORES.items()}
    words = ["Scores are on validation tiles, of the epoch with the best MCC on them, and so a little too good."]
    if sets:
        words.append("The spread is the standard deviation over the runs of a mean.")
    return Section(
        "Scores",
        words,
        tables=[
            Table("All classes together", head, {"": whole}),
            _grouped("By class", head, {name.capitalize(): of_class(name) for name in CLASSES}),
        ],
    )


def _fall(runs: Sequence[Run], columns: dict[str, str | None]) -> str:
    """Return in words where columns begin and end, mean of the runs."""
    said = []
    for phase, column in columns.items():
        known = [h for r in runs if column in r.history and len(h := r.history[column].dropna())]
        if known:
            first, last = (np.mean([h.iloc[k] for h in known]) for k in (0, -1))
            said.append(f"{phase} from {first:.3g} in the first epoch to {last:.3g} in the last")
    return "; ".join(said) + (", mean of the runs" if len(runs) > 1 else "")


def _curve(runs: Sequence[Run], caption: str, train: str | None, valid: str | None, **how: Any) -> Picture | None:
    """Draw a column of training and one of validation, unless no run has them."""
    if not any(column in r.history for r in runs for column in (train, valid)):
        return None
    drawn = figures.curves([r.history for r in runs], train, valid, caption, **how)
    phases = {"training": train, "validation": valid} if valid else {"it goes": train}
    return _picture(drawn, caption, f"{caption} by epoch: {_fall(runs, phases)}.")


def _curves(runs: Sequence[Run]) -> Section:
    columns = list(dict.fromkeys(c for r in runs for c in r.history))
    parts = [part for part in LOSSES if {f"{part}_loss", f"train_{part}_loss"} & set(columns)]
    drawn = [_curve(runs, "loss", "train_loss", "valid_loss")]
    drawn += [_curve(runs, f"{part} loss", f"train_{part}_loss", f"{part}_loss") for part in parts]
    drawn += [
        _curve(runs, f"ramp of the {c.removeprefix('ramp_')} loss", c, None) for c in columns if c.startswith("ramp_")
    ]
    drawn.append(_curve(runs, "learning rate", "lr", None, log=True))
    words = ["Solid: training, on augmented crops. Dashed: validation."]
    return _drawn("Learning curves", drawn, words, "No run has a history yet.")


def _drawn(title: str, drawn: Sequence[Picture | None], words: list[str], without: str) -> Section:
    pictures = [p for p in drawn if p]
    return Section(title, words if pictures else [without], key=bool(pictures), pictures=pictures)


def _progress(runs: Sequence[Run]) -> Section:
    best = [r.scores.get("epoch") for r in runs]
    drawn = [
        _curve(runs, name, f"train_{column}", column, best=best)
        for column, name in (("mcc", "MCC"), ("ice_mcc", "MCC of ice"), ("mean_iou", "mean IoU"))
    ]
    words = ["Solid: training, on augmented crops. Dashed: validation, with a dot where the model was kept."]
    return _drawn("MCC over the epochs", drawn, words, "No run has a history yet.")


def _confusion(runs: Sequence[Run], sets: dict[str, list[int]]) -> Section:
    rest = [k for k in range(len(runs)) if not any(k in chosen for chosen in sets.values())]
    drawn = []
    for name, chosen in [*sets.items(), *((runs[k].name, [k]) for k in rest)]:
        known = [np.array(runs[k].scores["confusion"]) for k in chosen if "confusion" in runs[k].scores]
        if known:
            matrix = reduce(add, known)
            share = matrix.diagonal() / np.maximum(matrix.sum(1), 1)
            found = ", ".join(f"{percent(v)} of {c}" for c, v in zip(CLASSES, share, strict=True))
            caption = f"{name or 'all'}: {len(known)} runs added up" if len(known) > 1 else runs[chosen[0]].name
            alt = f"Confusion matrix: right are {found}."
            drawn.append(_picture(figures.confusion(matrix), caption, alt))
    words = ["Each row is the truth, and sums to 100 %; below the shares are pixels."]
    section = _drawn("Confusion", drawn, words, "No run has scores.")
    section.key = False
    return section


def _reliability(runs: Sequence[Run], seen: Sequence[Seen | None]) -> Section:
    names = list(dict.fromkeys(name for s in seen if s for name in s.reliability))
    drawn, errors = [], {}
    for name in names:
        tables = [s and s.reliability[name] for s in seen]
        found = [expected_calibration_error(t) if t and t.pixels.any() else None for t in tables]
        errors[name] = [number(v) for v in found]
        alt = f"Reliability of the {name}: calibration error {_spread(found)}."
        caption = f"{name}, n = {sum(int(t.pixels.sum()) for t in tables if t):,} px"
        drawn.append(_picture(figures.reliability(tables, f"probability of {name}"), caption, alt))
    words = [
        "How often a class is there, by how probable it was said to be. On the dotted line both are the same; below it "
        "the model is too sure."
    ]
    section = _drawn("Reliability", drawn, words, "Not measured: no run with validation tiles at hand.")
    if errors:
        section.tables = [Table("Expected calibration error (ECE)", _names(runs), {"": errors})]
    return section


def _composition(runs: Sequence[Run], data: Sequence[np.ndarray | None]) -> Section:
    columns = [f"share_{name}" for name in CLASSES]
    batches = [r.history[columns].mean().to_numpy() if {*columns} <= {*r.history} else None for r in runs]
    words = []
    if any(b is None for b in batches):
        words.append("A run without numbers for its batches has not recorded them.")
    if any(d is None for d in data):
        words.append("What a run had to train on is only known where its tiles are at hand.")
    if not any(v is not None for v in [*batches, *data]):
        return Section("Batch composition", words)
    groups = {}
    for k, name in enumerate(CLASSES):
        targets = [(r.get("balance", "target") or {}).get(name) for r in runs]
        rows = {
            "in the data": [percent(None if d is None else d[k]) for d in data],
            "in batches": [percent(None if b is None else b[k]) for b in batches],
            "target": [percent(t) for t in targets],
        }
        groups[name.capitalize()] = {w: cells for w, cells in rows.items() if w != "target" or any(targets)}
    known = [b for b in batches if b is not None]
    said = ", ".join(f"{c} {percent(v)}" for c, v in zip(CLASSES, np.mean(known, 0), strict=True)) if known else "none"
    drawn = _picture(
        figures.shares(data, batches), "square: in the data, dot: in batches", f"Classes in batches: {said}."
    )
    words.insert(
        0, "Shares of the labelled pixels of the training tiles, and of those that the loss saw in all epochs."
    )
    table = _grouped("Classes in the data and in batches", _names(runs), groups)
    return Section("Batch composition", words, key=True, tables=[table], pictures=[drawn])


def _tiles(seen: Sequence[Seen | None]) -> Section:
    some = sorted(((i, k, tile) for k, s in enumerate(seen) if s for i, tile in s.some), key=lambda t: t[:2])
    if not some:
        return Section("Tiles", ["None to show: no run with validation tiles at hand."])
    words = [f"Validation tiles, evenly taken. {WIPE}"]
    return Section("Tiles", words, tiles=[tile for *_, tile in evenly(some, SHOWN)])


def _hardest(runs: Sequence[Run], seen: Sequence[Seen | None]) -> Section:
    known = [s for s in seen if s]
    if not known:
        return Section("Hardest tiles", ["None to show: no run with validation tiles at hand."])
    table = pd.concat([s.table for s in known]).dropna(subset="loss").sort_values("loss", ascending=False)[:LISTED]
    rows = {
        f"{row.id}, {row.run}" if len(runs) > 1 else str(row.id): [
            *(number(v) for v in (row.loss, row.mcc)),
            percent(row.ice_share),
            f"{row.brightness:,.0f}" if row.brightness > 100 else f"{row.brightness:.3g}",
            f"{row.labelled:,}",
        ]
        for row in table.itertuples()
    }
    of, looked = sum(s.of for s in known), sum(len(s.table) for s in known)
    words = [
        f"Largest mean loss, of {looked:,} validation tiles."
        if looked == of
        else f"Largest mean loss, of {looked:,} validation tiles evenly taken from {of:,}."
    ]
    words.append(WIPE)
    hardest = sorted((t for s in known for t in s.hardest), key=lambda t: -t[0])[:SHOWN]
    head = ["loss, nats", "MCC", "ice", "brightness", "labelled pixels"]
    return Section(
        "Hardest tiles",
        words,
        tables=[Table("Tiles with the largest loss", head, {"": rows})],
        tiles=[tile for _, tile in hardest],
    )


def _importance(runs: Sequence[Run], seen: Sequence[Seen | None]) -> Section:
    tables = [s and s.importance for s in seen]
    known = [t for t in tables if t is not None]
    if not known:
        return Section("Band importance", ["Not measured: no run with validation tiles at hand."])
    drop = pd.concat(known).groupby("band", sort=False)["drop"].mean().sort_values(ascending=False)
    said = ", ".join(f"{band} {value:.3f}" for band, value in drop.items())
    words = [
        "By how much the MCC falls when a band's values are shuffled within each tile; the model looks once, whatever "
        "its recipe says of views. Bars are the standard deviation over the shuffles. Bands that say the same stand in "
        "for each other, and then all of them look unimportant."
    ]
    tiles = sum(int(t["tiles"].iloc[0]) for t in known)
    caption = f"fall of the MCC, n = {tiles} tiles"
    drawn = _picture(figures.importance(tables), caption, f"Fall of the MCC without a band: {said}.")
    return _drawn("Band importance", [drawn], words, "")


def _moment(event: dict[str, Any]) -> str:
    return event["time"].replace("T", " ").replace("Z", " UTC")


def _time(runs: Sequence[Run]) -> Section:
    def row(get: Callable[[list[dict[str, Any]]], Any]) -> list[str]:
        return [_plain(get(r.events)) for r in runs]

    def seconds(events: list[dict[str, Any]]) -> list[float]:
        return list({e["epoch"]: e["seconds"] for e in events if e["event"] == "epoch"}.values())

    def number(kind: str) -> list[str]:
        return row(lambda events: sum(e["event"] == kind for e in events))

    def peak(events: list[dict[str, Any]]) -> str | None:
        known = [e["gpu_peak_mb"] for e in events if "gpu_peak_mb" in e]
        return f"{max(known):,} MB" if known else None

    rows = {
        "first event": row(lambda events: _moment(events[0]) if events else None),
        "last event": row(lambda events: _moment(events[-1]) if events else None),
        "epochs": row(lambda events: len(seconds(events))),
        "all epochs": row(lambda events: f"{sum(seconds(events)) / 60:.1f} min"),
        "an epoch, median": row(lambda events: f"{np.median(s):.1f} s" if (s := seconds(events)) else None),
        "batches skipped": number("skipped"),
        "stops": number("stop"),
        "resumptions": number("resume"),
        "peak of GPU memory": row(peak),
    }
    words = ["An epoch is training and validation. Memory is recorded on GPUs only."]
    return Section("Time and memory", words, tables=[Table("Training", _names(runs), {"": rows}, joined=True)])
