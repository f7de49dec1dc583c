"""The vocabulary: bands, classes, codes, colours and false-colour composites.

Bands are names, never positions. A tensor of shape ``(B, C, H, W)`` has its C bands in the order of a list
of these names, and whatever reads a file translates that file's own names and codes into these, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .errors import DataError, did_you_mean

__all__ = [
    "ASPECT",
    "BANDS",
    "CLASSES",
    "CLASS_COLOURS",
    "COMPETITION_CODES",
    "COMPOSITES",
    "ICE",
    "ICE_COLOUR",
    "ICE_OF_ANY_KIND",
    "IGNORE",
    "INDICES",
    "LOCATION",
    "TERRAIN",
    "TEXTURES",
    "UNITS",
    "UNKNOWN_ICE",
    "Bands",
    "aspect_index",
    "canonical_band",
    "composite",
    "natural_unit",
    "texture_of",
]

BANDS: dict[str, str] = {
    "blue": "blue, about 0.48 um",
    "green": "green, about 0.56 um",
    "red": "red, about 0.66 um",
    "nir": "near infrared, about 0.85 um",
    "swir1": "shortwave infrared, about 1.6 um",
    "swir2": "shortwave infrared, about 2.2 um",
    "thermal": "thermal infrared, about 11 um",
    "thermal_low": "Landsat 7 band 6, low gain (VCID_1)",
    "thermal_high": "Landsat 7 band 6, high gain (VCID_2)",
    "pan": "panchromatic",
    "ndvi": "(nir - red) / (nir + red)",
    "ndsi": "(green - swir1) / (green + swir1)",
    "ndsi_flipped": "(swir1 - green) / (swir1 + green), what the HKH files call NDSI",
    "ndwi": "(nir - swir1) / (nir + swir1), Gao",
    "elevation": "height above sea level, m",
    "slope": "slope, degrees",
    "aspect_sin": "sine of the direction of steepest descent, clockwise from north; 0 on flat ground",
    "aspect_cos": "cosine of it",
    "curvature": "-(z_xx + z_yy), second derivatives of height, 1/m; positive on ridges, negative in troughs",
    "latitude": "degrees north, of the pixel's place by the grid; 0 like longitude where the place is unknown",
    "longitude": "degrees east, -180 to 180",
}
"""Every band a recipe may name, beside the texture bands ``glcm_KIND(X)`` of a band X, KIND one of `TEXTURES`."""

INDICES: dict[str, tuple[str, str]] = {
    "ndvi": ("nir", "red"),
    "ndsi": ("green", "swir1"),
    "ndsi_flipped": ("swir1", "green"),
    "ndwi": ("nir", "swir1"),
}
"""Band -> bands a and b that it is computed of, (a - b) / (a + b)."""

UNITS: tuple[str, ...] = ("reflectance", "kelvin", "metre", "degree", "1/m", "dn")
"""Units of bands; "dn", digital number, where nothing is known, or there is none, as of indices."""

ASPECT = ("aspect_sin", "aspect_cos")
"""Bands that are a direction on the ground together: they turn when the image does."""

TERRAIN = ("elevation", "slope", *ASPECT, "curvature")
"""Bands that an elevation model gives."""

LOCATION = ("latitude", "longitude")
"""Bands that the grid gives. Where both are 0, in the Gulf of Guinea, the place is unknown."""

TEXTURES: tuple[str, ...] = ("contrast", "energy", "asm", "homogeneity", "dissimilarity")
"""Kinds of texture band, see `core.glcm`."""

_TEXTURE = re.compile(r"glcm_(\w+)\((\w+)\)")

CLASSES: tuple[str, ...] = ("background", "glacier", "debris", "lake")
"""Class names by code 0..3; "glacier" is clean ice, "debris" debris-covered ice."""

IGNORE = 255
"""Mask value of a pixel without data or without a label: counted by nothing."""

ICE_OF_ANY_KIND = 254
"""Mask value of ice that may be clean or under debris, as an outline of RGI or a binary label says."""

ICE: tuple[int, ...] = (1, 2)
"""Classes that are ice of any kind, reported as a binary score beside the four classes."""

COMPETITION_CODES: tuple[int, ...] = (0, 85, 170, 255)
"""GlacierHack 2025 label values of background, glacier, debris, lake."""

CLASS_COLOURS: tuple[str, ...] = ("#c9c5b9", "#56b4e9", "#d55e00", "#0b3c8c")
"""Hex colours by class; distinguishable with the common colour-vision deficiencies (Okabe and Ito's hues)."""

UNKNOWN_ICE, ICE_COLOUR = "ice, kind unknown", "#cc79a7"
"""What `ICE_OF_ANY_KIND` is called in pictures and tables, and its hex colour."""

COMPOSITES: dict[str, tuple[str, str, str]] = {
    "snow and ice": ("swir1", "nir", "red"),
    "snow and ice (no nir)": ("swir1", "red", "green"),
    "colour infrared": ("nir", "red", "green"),
    "natural colour": ("red", "green", "blue"),
}
"""Name -> bands shown as red, green and blue, in the order in which they are tried."""


def canonical_band(name: str) -> str:
    """Return our name for a band as a user spells it; those of sensors are read by `data.scenes.names`.

    >>> canonical_band("SWIR1"), canonical_band("GLCM_contrast( swir1 )")
    ('swir1', 'glcm_contrast(swir1)')

    Raises:
        DataError: The name is unknown; the message names the nearest right one.
    """
    plain = re.sub(r"\s+", "_", name.strip().lower())
    plain = re.sub(r"_*([()])_*", r"\1", plain)
    if plain in BANDS:
        return plain
    if (match := _TEXTURE.fullmatch(plain)) and match[1] in TEXTURES:
        if match[2] in BANDS:
            return plain
        raise DataError(f"band {name!r}: {match[2]!r} is no band{did_you_mean(match[2], BANDS)}")
    textures = [f"glcm_{kind}({band})" for kind in TEXTURES for band in BANDS]
    raise DataError(
        f"unknown band {name!r}: use {', '.join(BANDS)}, or glcm_KIND(BAND) with KIND one of {', '.join(TEXTURES)}"
        f"{did_you_mean(plain, [*BANDS, *textures])}"
    )


def natural_unit(band: str) -> str | None:
    """Return the unit of what a band measures, None for indices, texture and the sine and cosine of aspect.

    >>> natural_unit("swir1"), natural_unit("thermal"), natural_unit("ndsi")
    ('reflectance', 'kelvin', None)
    """
    if band in INDICES or band in ASPECT or band not in BANDS:
        return None
    if band.startswith("thermal"):
        return "kelvin"
    if band in ("slope", *LOCATION):
        return "degree"
    return {"elevation": "metre", "curvature": "1/m"}.get(band, "reflectance")


def aspect_index(
    bands: Sequence[str],  # in the order of the tensors
) -> tuple[int, int] | None:
    """Return the positions of `aspect_sin` and `aspect_cos`, None where neither is among the bands.

    >>> aspect_index(["red", "aspect_sin", "aspect_cos"]), aspect_index(["red"])
    ((1, 2), None)

    Raises:
        DataError: One of them is there without the other, so that it could not be turned.
    """
    there = [band for band in ASPECT if band in bands]
    if len(there) == 1:
        raise DataError(
            f"band {there[0]} alone cannot be turned with the image: name {' and '.join(ASPECT)}, or use no flips, "
            "rotations and views"
        )
    return (bands.index(ASPECT[0]), bands.index(ASPECT[1])) if there else None


def texture_of(band: str) -> tuple[str, str] | None:
    """Return kind and base band of a texture band in our spelling ("contrast", "swir1"), or None for any other band."""
    match = _TEXTURE.fullmatch(band)
    return (match[1], match[2]) if match else None


class Bands(tuple[str, ...]):
    """Names of bands in our spelling, each once, in the order of the tensors.

    >>> bands = Bands(["Green", "SWIR1", "ndsi", "glcm_contrast(swir1)"])
    >>> bands, bands.textures
    (('green', 'swir1', 'ndsi', 'glcm_contrast(swir1)'), {'glcm_contrast(swir1)': ('contrast', 'swir1')})
    >>> bands.made_of(["green", "swir1"])
    ('green', 'swir1')

    Raises:
        DataError: The list is empty, or a band is unknown or named twice.
    """

    def __new__(cls, names: Iterable[str]) -> Bands:
        """Parse the names; those of `Bands` are right already."""
        if isinstance(names, Bands):
            return names
        if isinstance(names, str):
            raise DataError(f"bands {names!r}: give a list of names, such as {names.split(',')}")
        out = tuple(canonical_band(n) for n in names)
        if not out:
            raise DataError("no bands given: name at least one")
        for i, name in enumerate(out):
            if name in out[:i]:
                raise DataError(f"band {name!r} is named twice in {', '.join(out)}: name each band once")
        return super().__new__(cls, out)

    @property
    def textures(self) -> dict[str, tuple[str, str]]:
        """Kind and base of each texture band, by its name."""
        return {b: t for b in self if (t := texture_of(b))}

    def made_of(self, there: Iterable[str]) -> tuple[str, ...]:
        """Return the bands that must be read to have these, where `there` are those that can be, each once.

        Bands that are not there are computed, indices of two others, texture of one, and location of the grid; what
        can be neither read nor computed is returned as it is.
        """
        there = set(there)

        def bases(band: str) -> tuple[str, ...]:
            if band in there:
                return (band,)
            if texture := texture_of(band):
                return bases(texture[1])
            return () if band in LOCATION else INDICES.get(band, (band,))

        return tuple(dict.fromkeys(base for band in self for base in bases(band)))


def composite(bands: Sequence[str]) -> tuple[str, tuple[int, int, int]]:
    """Return the name of the best composite that `bands` allow, and the positions of its red, green and blue.

    With none of `COMPOSITES` within reach, up to three bands are shown as they come (one band as grey).
    """
    for name, rgb in COMPOSITES.items():
        if all(b in bands for b in rgb):
            red, green, blue = (bands.index(b) for b in rgb)
            return name, (red, green, blue)
    index = (0, 1, 2) if len(bands) >= 3 else (0, 0, 0)
    return ", ".join(dict.fromkeys(bands[i] for i in index)), index
