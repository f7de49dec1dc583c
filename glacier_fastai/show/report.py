"""The report of runs: one HTML file that holds all it shows, and asks the network for nothing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .. import __version__
from ..bands import CLASS_COLOURS, CLASSES
from ..data.raw import open_tiles
from ..errors import BundleError, DataError, OutputError
from ..files import whole_file
from ..plots.figures import colours
from ..plots.panels import CORRECT, WRONG
from .runs import not_comparable, read_runs
from .sections import sections
from .seen import SHOWN, look, store_of, train_shares

__all__ = ["write_report"]

log = logging.getLogger(__name__)


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
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; use --overwrite, or another --out")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}; make it first, or choose another --out")
    runs, sets = read_runs(paths)
    stores = {} if data is None else {str(data): open_tiles(data, runs[0].get("bands")).base()}
    notes = [f"{run.name}: {line}." for run in runs for line in run.lacks]
    if odd := not_comparable(runs):
        notes.append(f"{odd}.")
        sets.pop("", None)
    shares, seen = [], []
    for run in runs:
        share = found = None
        try:
            store = store_of(run, data, stores)
            share = train_shares(run, store)
            found = look(run, store, -(-SHOWN // len(runs)))
        except (BundleError, DataError) as err:
            notes.append(f"{run.name}: {err}.")
        shares.append(share)
        seen.append(found)
    page = _template().render(
        title=", ".join(Path(p).resolve().name for p in paths),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
        notes=notes,
        sections=sections(runs, sets, shares, seen),
        key=list(zip([r.name for r in runs], colours(len(runs)), strict=True)),
        classes=[*zip(CLASSES, CLASS_COLOURS, strict=True), ("right", CORRECT), ("wrong", WRONG)],
    )
    with whole_file(out) as file:
        file.write(page.encode())


def _template():
    folder = FileSystemLoader(Path(__file__).parent)
    plain = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    return Environment(loader=folder, autoescape=True, **plain).get_template("report.html.jinja")
