"""The report of runs: one HTML file that holds all it shows, and asks the network for nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from .. import __version__
from ..bands import CLASS_COLOURS, CLASSES, ICE_COLOUR, UNKNOWN_ICE
from ..data.raw import open_tiles
from ..errors import BundleError, DataError, OutputError, printable
from ..files import names_only, write_text
from ..plots.figures import LEAST
from ..plots.panels import CORRECT, WRONG
from ..plots.style import line_colours
from .runs import not_comparable, read_runs
from .sections import contents, number, percent, plain
from .validation import SHOWN, Validation, store_of, train_shares, validate

__all__ = ["write_report"]

LONGEST = 2000  # of a note, letters


def write_report(
    paths: Sequence[str | os.PathLike],  # run folders, and folders of `crossval`, which count as their folds
    out: str | os.PathLike,  # HTML file to write
    data: str | os.PathLike | None = None,  # tile store or raw folder, default where each run found it
    overwrite: bool = False,  # replace the file
) -> None:
    """Write the report of some runs, side by side. What a run lacks, and tiles that are gone, it does without.

    Raises:
        DataError: A folder is no run or is named twice, or `data` cannot be opened.
        BundleError: A run of other classes than ours.
        OutputError: The file exists already or cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{out}: a report is a page; name it NAME.html")
    if os.path.lexists(out) and not overwrite:
        raise OutputError(f"{out}: exists already; overwrite it, or choose another file")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}; make it first, or choose another file")
    runs, groups = read_runs(paths)
    stores = {} if data is None else {str(data): open_tiles(data, runs[0].get("bands")).base()}
    notes = [f"{run.name}: {line}." for run in runs for line in (*run.lacks, *run.notes)]
    if odd := not_comparable(runs):
        notes.append(f"{odd}.")
        groups.pop("", None)
    shares: list[np.ndarray | None] = []
    validations: list[Validation | None] = []
    for run in runs:
        share = found = None
        try:
            store = store_of(run, data, stores)
            share = train_shares(run, store)
            found = validate(run, store, -(-SHOWN // len(runs)))
        except (BundleError, DataError) as err:
            notes.append(f"{run.name}: {err}.")
        shares.append(share)
        validations.append(found)
    unknown = [(UNKNOWN_ICE, ICE_COLOUR)] * any(bool(store.ice_counts().any()) for store in stores.values())
    page = _template().render(
        title=printable(", ".join(Path(p).resolve().name for p in paths)),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
        notes=[names_only(text[:LONGEST]) for text in notes],
        key=list(zip([r.name for r in runs], line_colours(len(runs)), strict=True)),
        classes=[*zip(CLASSES, CLASS_COLOURS, strict=True), *unknown, ("right", CORRECT), ("wrong", WRONG)],
        least=LEAST,
        **contents(runs, groups, shares, validations),
    )
    write_text(out, page)


def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent)
    env = Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    env.globals |= {"number": number, "percent": percent, "plain": plain}
    return env.get_template("report.html.jinja")
