"""One tree of errors, and notes. Each message is one line: which file, what is wrong, what is allowed, what to do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BundleError",
    "CheckpointError",
    "DataError",
    "DataNote",
    "GlacierError",
    "OutputError",
    "PredictionError",
    "RecipeError",
    "RunStopped",
    "TrainingError",
    "cell",
    "did_you_mean",
    "note",
    "printable",
]


def printable(
    text: str,
    most: int = 400,  # characters; of longer ones the middle is left out
) -> str:
    r"""Return a text as one line that a terminal shows as it is: what is no printable character is escaped.

    >>> printable("a\x1b[2J\nb")
    'a\\x1b[2J\\nb'
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return line if len(line) <= most else f"{line[: most - 150]} ... {line[-145:]}"


def cell(text: str) -> str:
    """Return a text for a cell of a table, which no spreadsheet takes for a formula.

    >>> cell("=HYPERLINK(1)"), cell("scene_0_0")
    ("'=HYPERLINK(1)", 'scene_0_0')
    """
    line = printable(text)
    return f"'{line}" if line[:1] in {"=", "+", "-", "@"} else line


class GlacierError(Exception):
    """Root of every error that glacier_fastai raises on purpose; the command line shows it as one line."""

    exit_code = 2

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class DataError(GlacierError, ValueError):
    """Input data that cannot be used: a missing or damaged file, wrong bands, sizes, codes or folds."""


class RecipeError(GlacierError, ValueError):
    """A recipe with an unknown key, a wrong type or an impossible combination."""


class BundleError(GlacierError, ValueError):
    """A model bundle that is foreign, damaged, or does not fit the data."""


class CheckpointError(GlacierError, ValueError):
    """A checkpoint that is foreign, damaged, or of another run than the one that is to go on."""


class OutputError(GlacierError, OSError):
    """An output that exists already or cannot be written."""


class PredictionError(GlacierError, RuntimeError):
    """A prediction that cannot be finished, or some of many that failed."""


class TrainingError(GlacierError, RuntimeError):
    """A training run that cannot start or go on."""


class RunStopped(GlacierError):
    """A training run that was stopped in time, and saved so that it can go on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


class DataNote(UserWarning):
    """Odd input that can be used. The command line shows it as one line, "note: ..."; files made of it keep it."""


def note(
    text: str,  # one line: which file, what is odd, what was done, what to do if that is wrong
    kept: list[str],  # notes of what is being made; one that is there is not said again
) -> None:
    """Say what is odd about input that can be used.

    >>> kept = []
    >>> with warnings.catch_warnings(record=True, action="always") as said:
    ...     note("s.tif: band nir is constant", kept)
    >>> kept, said[0].category.__name__
    (['s.tif: band nir is constant'], 'DataNote')
    """
    text = printable(text, 1000)
    if text not in kept:
        kept.append(text)
        warnings.warn(text, DataNote, stacklevel=2)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return a suggestion of the nearest allowed name, or an empty string if none is near.

    >>> did_you_mean("swirl", ["red", "swir1"]), did_you_mean("xyz", ["red"])
    ("; did you mean 'swir1'?", '')
    """
    near = get_close_matches(str(name), list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
