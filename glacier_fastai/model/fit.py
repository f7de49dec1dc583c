"""Whether data are of the kind a model was trained on: units, values, pixel size, sensor; and what it cannot tell."""

from __future__ import annotations

import os
from typing import Literal

from ..bands import INDICES, LOCATION, Bands
from ..core.ranges import outside, spread, unlike
from ..data.profile import LARGER, Profile
from ..errors import BundleError, note
from .bundle import ModelBundle
from .ensemble import Ensemble

__all__ = ["check_fit", "check_units", "known_profile"]

NORMAL = (-2.326, -1.645, -0.674, 0.0, 0.674, 1.645, 2.326)
"""What `core.ranges.QUANTILES` are of a standard normal distribution."""
ODD = 0.5  # share of the values beyond the central nine tenths of those trained on (of like data: 0.1) that is said
WIDER = 8.0  # times as wide as what was trained on, or as narrow, that a range may be without a word


def check_fit(
    model: ModelBundle | Ensemble,
    where: str | os.PathLike,  # file or folder named in messages
    found: Profile,  # what its values are
    notes: list[str],  # what is odd is said, and added to them
    statistics: Literal["bundle", "scene"] = "bundle",  # what values are to be normalised with
    force: bool = False,  # only say what would be refused, but for units
) -> None:
    """Say where data are unlike those a model was trained on.

    Raises:
        BundleError: The units differ; or values of most bands lie where the model has seen next to none.
    """
    for line in check_units(model, where, found.units, statistics):
        note(line, notes)
    members = Ensemble.of(model).members
    if blind := [m for m in members if not m.bundle.tells_debris]:
        which = "the model was" if len(members) == 1 else f"{len(blind)} of {len(members)} models were"
        note(f"{where}: {which} never told debris from clean ice, so all ice is glacier, and none is debris", notes)
    for member in members:
        bundle = member.bundle
        known, named = known_profile(bundle), f"{where}: "
        bands = [b for b in _read(bundle, known, found.units) if b in found.quantiles]
        both = [b for b in bands if b in known.quantiles and known.units[b] == found.units[b]]
        if statistics == "bundle":
            _check_values(where, both, known, found, notes, force)
        if constant := [b for b in bands if len({*found.quantiles[b]}) == 1]:
            note(f"{named}{', '.join(constant)}: one value everywhere; is it the right file?", notes)
        if known.pixel_size and found.pixel_size:
            ratio = known.pixel_size / found.pixel_size
            if not 1 / LARGER < ratio < LARGER:
                size = f"{known.pixel_size:.3g}"
                note(
                    f"{named}pixels of {found.pixel_size:.3g} m, but the model was trained on {size} m, and knows no "
                    f"others; resample it (gdalwarp -tr {size} {size} -r {'average' if ratio > 1 else 'bilinear'})",
                    notes,
                )
        if known.sensor and found.sensor and known.sensor != found.sensor:
            note(f"{named}of {found.sensor}, but the model was trained on {known.sensor}", notes)


def check_units(
    model: ModelBundle | Ensemble,
    where: str | os.PathLike,  # as in `check_fit`
    units: dict[str, str],  # unit of each band there
    statistics: Literal["bundle", "scene"] = "bundle",  # as in `check_fit`
) -> list[str]:
    """Return where units are others than those trained on, a line each; a scene's own statistics make up for that.

    Raises:
        BundleError: They are, and nothing makes up for it.
    """
    odd = []
    for member in Ensemble.of(model).members:
        bundle, known = member.bundle, known_profile(member.bundle)
        computed = any(b in INDICES and b not in units for b in bundle.bands)  # an index of other units is another one
        if other := [b for b in _read(bundle, known, units) if known.units[b] != units[b]]:
            line = f"{where}: has {_units(other, units)}, but the model was trained on {_units(other, known.units)}"
            if statistics == "bundle" or computed:
                raise BundleError(f"{line}; {_advice(known.units[other[0]], units[other[0]], computed)}")
            odd.append(f"{line}: normalised by the scene's own statistics")
    return odd


def _read(bundle: ModelBundle, known: Profile, there: dict[str, str]) -> list[str]:
    """Return the bands that are read for a bundle, and of which it knows something."""
    return [b for b in Bands(bundle.bands).made_of(there) if b in known.units and b in there]


def known_profile(
    bundle: ModelBundle,
) -> Profile:
    """Return what a bundle was trained on; of one that does not say, unit dn, and what its statistics tell."""
    if bundle.profile.units:
        return bundle.profile
    measured = {b: (m, s) for b, m, s in zip(bundle.bands, bundle.mean, bundle.std, strict=True)}
    measured = {b: ms for b, ms in measured.items() if b not in {*INDICES, *LOCATION, *bundle.bands.textures}}
    quantiles = {b: tuple(m + z * s for z in NORMAL) for b, (m, s) in measured.items()}
    return Profile(units=dict.fromkeys(measured, "dn"), quantiles=quantiles)


def _units(bands: list[str], units: dict[str, str]) -> str:
    said: dict[str, list[str]] = {}
    for band in bands:
        said.setdefault(units[band], []).append(band)
    return " and ".join(
        f"{', '.join(of)} in {'unknown units (dn)' if unit == 'dn' else unit}" for unit, of in said.items()
    )


def _advice(known: str, found: str, computed: bool) -> str:
    if found == "dn":
        return "give the scale and offset that turn its numbers into units"
    if known == "dn":
        other = "" if computed else ", or normalise it by its own statistics"
        return f"train the model on data with units, or give a file with the numbers it knows{other}"
    return "convert it"


def _check_values(
    where: str | os.PathLike, bands: list[str], known: Profile, found: Profile, notes: list[str], force: bool
) -> None:
    odd, hopeless = [], 0
    for band in bands:
        ours, theirs = known.quantiles[band], found.quantiles[band]
        share, width = outside(ours, theirs), spread(ours, theirs)
        hopeless += unlike(ours, theirs)
        if share > ODD or not 1 / WIDER < width < WIDER:
            low, high, least, most = theirs[1], theirs[-2], ours[1], ours[-2]
            odd.append(f"{band} {low:.4g} to {high:.4g} ({least:.4g} to {most:.4g})")
    if not odd:
        return
    line = (
        f"{where}: values far from those the model was trained on, which stand in brackets: {', '.join(odd)}; "
        "give its scale and offset, or normalise it by its own statistics"
    )
    if 2 * hopeless > len(bands) and not force:
        raise BundleError(f"{line}; nothing of use would come of it, unless it is forced")
    note(line, notes)
