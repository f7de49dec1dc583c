"""Units of bands: what scale and offset make of a file's numbers, and what they then are.

A band's unit is one of `UNITS`; "dn" (digital number) where nothing is known. Units come from the file (GDAL's scale,
offset and unit of a band), or from the user, who gives scale and offset. Numbers of a type with fractions and without
any word are taken for what they are by their range, for no digital number has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ...bands import natural_unit
from ...errors import DataError, did_you_mean
from ...reading import parse_number

__all__ = ["Scaling", "by_band", "no_offset", "parse_scaling", "unit_of"]

TAGS = {
    **dict.fromkeys(("reflectance", *(f"{of} reflectance" for of in ("surface", "toa", "boa"))), "reflectance"),
    **dict.fromkeys(("kelvin", "k", "degk"), "kelvin"),
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), "metre"),
    **dict.fromkeys(("degree", "degrees", "deg", "°"), "degree"),
    **dict.fromkeys(("1/m", "m-1", "m^-1", "1/metre", "per metre"), "1/m"),
    **dict.fromkeys(("celsius", "degc", "degree_celsius", "degrees celsius", "°c"), "celsius"),
}
"""How files write units, in lower case; "celsius" becomes kelvin."""
NONE = ("", "1", "-", "none", "n/a", "unknown", "unitless", "dimensionless", "dn")
"""How they say that there is none, or none yet."""

ZERO_CELSIUS = 273.15  # kelvin
LIKELY = {"reflectance": (-1.0, 3.0), "kelvin": (150.0, 400.0), "celsius": (-123.0, 127.0), "1/m": (-0.1, 0.1)}
"""Unit -> what nearly all of its values lie in: snow under a low sun reflects up to 1.6, shade is below 0, and other
programs give curvature times 100."""
OF_WHOLE = 0.005  # a scale below this is of whole numbers; that of fractions, if any, is per cent or larger
LANDSAT = 2.75e-5, -0.2  # of reflectance, Collection 2, Level 2

Given = float | Sequence[float] | Mapping[str, float] | None


class Scaling(NamedTuple):
    """How the numbers of a band become values: ``scale * number + offset``, in `unit`."""

    scale: float = 1.0
    offset: float = 0.0
    unit: str = "dn"


def parse_scaling(
    text: str,  # "1e-4", "2.75e-5,0.00341802" or "blue=2.75e-5,thermal=0.00341802"
    what: str,  # "scale" or "offset", for the message
) -> Given:
    """Return scale or offset as people write it: one number, one for each band of the file, or some by name.

    >>> parse_scaling("1e-4", "scale"), parse_scaling("1,2", "scale"), parse_scaling("thermal=149", "offset")
    (0.0001, [1.0, 2.0], {'thermal': 149.0})
    """
    if not text.strip():
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        if any("=" in part for part in parts):
            named = [part.partition("=") for part in parts]
            if not all(name.strip() for name, _, _ in named):
                raise ValueError(text)
            return {name.strip(): parse_number(value) for name, _, value in named}
        numbers = [parse_number(part) for part in parts]
    except ValueError:
        raise DataError(
            f"{what} {text!r}: give a number, one for each band of the file (2.75e-5,0.0034), or BAND=NUMBER,..."
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def by_band(
    given: Given,  # scale or offset, as from `parse_scaling`
    what: str,  # "scale" or "offset", for messages
    bands: Sequence[str],  # of the scene
    numbers: Sequence[int],  # which of the file's bands they are, counted from 1
    count: int,  # bands of the file
) -> list[float | None]:
    """Return the number given for each band, None where there is none.

    One number for all is meant for what measures reflected light, where there is such a band: thermal bands, heights
    and slopes have scales of their own.

    Raises:
        DataError: Wrong in number, or for a band that is not there; a scale of 0.
    """
    if given is None:
        return [None] * len(bands)
    if isinstance(given, Mapping):
        if other := [name for name in given if name not in bands]:
            raise DataError(f"{what}: no band {other[0]!r}; here are {', '.join(bands)}{did_you_mean(other[0], bands)}")
        out: list[float | None] = [given.get(band) for band in bands]
    elif isinstance(given, Sequence):
        if len(given) not in (count, len(bands)):
            raise DataError(f"{what}: {len(given)} numbers for {count} bands; give one for each, or one for all")
        out = [given[n - 1] for n in numbers] if len(given) == count else list(given)
    else:
        light = [natural_unit(band) == "reflectance" for band in bands]
        out = [float(given) if here or not any(light) else None for here in light]
    if what == "scale" and 0 in out:
        raise DataError("scale 0: every value would be the same; give the number that turns the file's into units")
    return out


def unit_of(
    band: str,  # its name
    tag: str | None,  # what the file calls its unit
    scaled: bool,  # whether scale or offset change its numbers
    values: np.ndarray,  # some of its values, scaled, without those that have no data
    numbers: np.ndarray | None = None,  # the same before scale and offset, default unknown
) -> tuple[str, str]:
    """Return the unit of a band, "celsius" included, and what is odd about it, or nothing.

    >>> unit_of("red", None, False, np.array([120, 96])), unit_of("red", None, True, np.array([0.2, 0.4]))
    (('dn', ''), ('reflectance', ''))
    """
    text = (tag or "").strip().lower()
    natural, named = natural_unit(band), TAGS.get(text)
    if scaled and natural in ("reflectance", "kelvin") and numbers is not None and _fractions(numbers):
        low, high = np.quantile(numbers, (0.02, 0.98))
        inside = LIKELY[natural][0] <= low and 0 < high <= LIKELY[natural][1]
        if inside and np.ptp(values) < OF_WHOLE * np.ptp(numbers):
            return "dn", (
                f"band {band} is {natural} before its scale already, from {low:.4g} to {high:.4g}: unit unknown; leave "
                "the scale out, or take it off the file (gdal_edit.py -scale 1 -offset 0)"
            )
    if natural is None:
        return "dn", ""
    # GDAL calls any band of a CRS with heights metre or foot
    said = text not in NONE and (natural == "metre" or not (named == "metre" or "foot" in text))
    if said and natural != named and (natural, named) != ("kelvin", "celsius"):  # a radiance, or feet
        what = f"which is no unit of {band}" if named else "which is not known"
        return "dn", f"band {band} is in {tag!r}, {what}: its values are compared as they are"
    unit = named if said and named else natural
    if natural in ("metre", "degree") or (said and natural == "1/m"):
        return unit, ""
    low, high = LIKELY[unit]
    ends = np.quantile(values, (0.02, 0.98)) if values.size else None
    likely = ends is None or (low <= ends[0] and ends[1] <= high)
    if said or scaled:
        if likely:
            return unit, ""
        assert ends is not None
        by = "unit" if said else "scale"
        return "dn", f"band {band} is no {unit} by its {by}, from {ends[0]:.4g} to {ends[1]:.4g}: unit unknown"
    if _fractions(values) and likely and (unit != "reflectance" or ends is not None and ends[1] > 0):
        return unit, ""
    return "dn", ""


def no_offset(
    scaling: Mapping[str, Scaling],  # of each band
) -> str:
    """Return a line about bands of reflected light which lack the offset that their scale usually comes with, or "".

    >>> no_offset({"red": Scaling(2.75e-5, 0.0, "reflectance")})
    'red: scale 2.75e-05 without offset, where Landsat has -0.2; give scale and offset'
    """
    light = {band: how for band, how in scaling.items() if how.unit == "reflectance"}
    usual = {LANDSAT[0]: ("Landsat", LANDSAT[1])}
    usual |= {how.scale: ("another band", how.offset) for how in light.values() if how.offset}
    bare = {band: how.scale for band, how in light.items() if not how.offset and how.scale in usual}
    if not bare:
        return ""
    whose, offset = usual[scale := next(iter(bare.values()))]
    return f"{', '.join(bare)}: scale {scale:g} without offset, where {whose} has {offset:g}; give scale and offset"


def _fractions(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and values.size > 0 and bool((values != np.rint(values)).mean() > 0.5)
