"""Names of bands as sensors, products and people write them, and what they are here.

"B4" alone says nothing: it is near infrared on Landsat 7 and red on Landsat 8. So the names of a
file are read together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from ...bands import BANDS, INDICES, TEXTURES
from ...errors import DataError

__all__ = ["DAY", "SENSORS", "canonical_sensor", "described_otherwise", "name_bands"]

DAY = re.compile(r"(?<!\d)(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)")
"""A day in the name of a file; the first is taken, which is that of the image."""
_TEXTURE = re.compile(r"glcm_(\w+)\((\w+)\)")

_TM: dict[str, str | None] = {
    "b1": "blue",
    "b2": "green",
    "b3": "red",
    "b4": "nir",
    "b5": "swir1",
    "b6": "thermal",
    "b7": "swir2",
}
_OLI: dict[str, str | None] = {
    "b1": None,  # coastal aerosol
    "b2": "blue",
    "b3": "green",
    "b4": "red",
    "b5": "nir",
    "b6": "swir1",
    "b7": "swir2",
    "b9": None,  # cirrus
    "b10": "thermal",
    "b11": None,  # thermal too, but spoiled by stray light
}
_MSI: dict[str, str | None] = {
    "b1": None,  # coastal aerosol
    "b2": "blue",
    "b3": "green",
    "b4": "red",
    "b5": None,  # red edge
    "b6": None,
    "b7": None,
    "b8": "nir",
    "b8a": "nir",
    "b9": None,  # water vapour
    "b10": None,  # cirrus
    "b11": "swir1",
    "b12": "swir2",
}


def _unused(names: str) -> dict[str, str | None]:
    return dict.fromkeys(names.split())


def _padded(bands: dict[str, str | None]) -> dict[str, str | None]:
    """Return the bands as ESA and HLS number them, in two digits: no Landsat product of its own does so."""
    return {f"b0{name[1:]}": band for name, band in bands.items() if len(name) == 2}


def _level2(bands: dict[str, str | None]) -> dict[str, str | None]:
    """Return the bands of a Landsat as its level 2 names them: surface reflectance (SR) and temperature (ST)."""
    thermal = ("b10", "b11") if "b10" in bands else ("b6",)
    named = {f"{'st' if name in thermal else 'sr'}_{name}": band for name, band in bands.items() if name != "b9"}
    quality = """qa_pixel qa_radsat pixel_qa radsat_qa st_qa st_atran st_cdist st_drad st_emis st_emsd st_trad
        st_urad atran cdist drad emis emsd trad urad"""
    return {**named, **_unused(quality)}


_TM |= _level2(_TM) | _unused("sr_atmos_opacity sr_cloud_qa atmos_opacity cloud_qa")
_ETM = _TM | {"b6_vcid_1": "thermal_low", "b6_vcid_2": "thermal_high", "b8": "pan"}
_OLI |= _level2(_OLI) | _padded(_OLI) | {"b8": "pan"} | _unused("sr_qa_aerosol qa_aerosol sr_aerosol")
_MSI |= _padded(_MSI) | _unused(
    """qa10 qa20 qa60 scl aot wvp tci tci_r tci_g tci_b msk_cldprb msk_snwprb msk_classi_opaque
    msk_classi_cirrus msk_classi_snow_ice cs cs_cdf clm clp"""
)

SENSORS: dict[str, dict[str, str | None]] = {
    "landsat4": _TM,
    "landsat5": _TM,
    "landsat7": _ETM,
    "landsat8": _OLI,
    "landsat9": _OLI,
    "sentinel2": _MSI,
}
"""Sensor -> the sensor's own band name (lower case) -> our name, None for a band that nothing here uses.

Names are those of Earth Engine, Landsat Collection 2, HLS and ESA. "B4" alone says nothing: Landsat 7 and 8 differ.
"""


def _key(name: str) -> str:
    """Return a name as it is looked up: "SR_Band2" and "sr b2" are "srb2", but "B1_2" (a copy of B1) is not "b12"."""
    key = re.sub(r"(?<!\d)[\s_.-]+|[\s_.-]+(?!\d)", "", name.lower()).removeprefix("toa")
    return re.sub(r"^(s[rt])?b(?:and)?(?=\d)", r"\1b", re.sub(r"^btb", "stb", key))


_OWN = {sensor: {_key(name): band for name, band in bands.items()} for sensor, bands in SENSORS.items()}

_COMMON: dict[str, str | None] = {
    **{_key(band): band for band in BANDS},
    **dict.fromkeys(("nearinfrared", "nir08", "nirnarrow", "narrownir", "nirbroad", "broadnir"), "nir"),
    **dict.fromkeys(("swir16", "shortwaveinfrared1"), "swir1"),
    **dict.fromkeys(("swir22", "shortwaveinfrared2"), "swir2"),
    **dict.fromkeys(("lwir", "lwir11", "tir", "tir1", "tirs", "tirs1"), "thermal"),
    **dict.fromkeys(("thermalinfrared", "thermalinfrared1"), "thermal"),
    "panchromatic": "pan",
    "dem": "elevation",
    **_unused(
        """coastal coastalaerosol aerosol ultrablue cirrus rededge rededge1 rededge2 rededge3 rededge071 rededge075
        rededge078 vre1 vre2 vre3 nir09 watervapour watervapor lwir12 tir2 tirs2 thermalinfrared2 alpha visual fmask
        qa bqa cld snw sza saa vza vaa"""
    ),
}
"""Names that mean the same for every sensor, such as the common names of STAC, as `_key` spells them."""

_SECOND = {"nirbroad": 1, "broadnir": 1, "nir08": 2, "nirnarrow": 2, "narrownir": 2, "b8a": 2}
"""Names that are nir only where no name of a lower number is: Sentinel-2 and its kin have a narrow band beside."""

_WAVELENGTHS: tuple[tuple[float, float, str | None], ...] = (
    (430, 455, None),
    (460, 510, "blue"),
    (540, 580, "green"),
    (640, 680, "red"),
    (695, 795, None),
    (820, 880, "nir"),
    (930, 960, None),
    (1360, 1390, None),
    (1550, 1700, "swir1"),
    (2100, 2300, "swir2"),
    (10_300, 11_600, "thermal"),
)
"""Central wavelength from and to, nm, and our name of the band: centres of all `SENSORS`, but the panchromatic."""

_WAVELENGTH = re.compile(
    r"(?<![\d.a-z])(\d+(?:\.\d+)?)(?:\s*[-–]\s*(\d+(?:\.\d+)?))?\s*(nm|nanomet\w+|[uµμ]m|micromet\w+)\b"
)
LONGEST = 200  # characters of a name that may be that of a product's file
_PRODUCT = re.compile(
    r"(?:.*?[_.])??(l[ceot]0\d|s2[abc]|hls\.[ls]30|t\d\d[a-z]{3})[_.](?:.*?[_.])?((?:s[rt]_)?b\d\w*?)(?:_\d0m)?(?:\.\w+)?"
)
_NUMBER_AND_NAME = re.compile(r"^((?:s[rt]_)?b(?:and)?[\s_]*\d+a?)[\s_]+(?!vcid)(?=\D|\d0m)")  # "B4_red", "Band 4 red"
_SENSOR = re.compile(
    r"(?:landsat|l)0?(?P<any>[45789])(?:tm|etm\+?|oli|tirs|olitirs)?|l[co]0?(?P<oli>[89])|le0?(?P<etm>7)|lt0?(?P<tm>[45])"
    r"|(?P<l30>(?:hls)?l30)|(?P<msi>s(?:entinel)?2[abc]?(?:msi)?(?:l1c|l2a)?|(?:hls)?s30|t\d\d[a-z]{3})"
)


def _sensor(name: str) -> str | None:
    if (match := _SENSOR.fullmatch(_key(name))) is None:
        return None
    number = match["any"] or match["oli"] or match["etm"] or match["tm"] or ("8" if match["l30"] else "")
    return f"landsat{number}" if number else "sentinel2"


def canonical_sensor(name: str) -> str:
    """Return our name for a sensor as a user or a product spells it.

    >>> canonical_sensor("Landsat 8"), canonical_sensor("LE07"), canonical_sensor("S2B"), canonical_sensor("HLS L30")
    ('landsat8', 'landsat7', 'sentinel2', 'landsat8')

    Raises:
        DataError: The sensor is unknown; the message names the nearest right one.
    """
    if sensor := _sensor(name):
        return sensor
    raise DataError(f"unknown sensor {name!r}: use {', '.join(SENSORS)}{_hint(_key(name), SENSORS)}")


def _hint(name: str, allowed: Iterable[str]) -> str:
    """Return the names that `name` is a slip of, as `did_you_mean` does, but no other band, index or sensor.

    Another number is another band or sensor, and other letters in a short name are another index (NDMI, kNDVI, NIRv).
    """

    def likeness(to: str) -> float:
        key = _key(to)
        if re.sub(r"\D", "", name) not in ("", re.sub(r"\D", "", key)):
            return 0
        if len(key) < 4 or (len(key) == 4 and to in INDICES):
            return float(sorted(name) == sorted(key))
        return SequenceMatcher(None, name, key).ratio() if abs(len(name) - len(key)) < 2 else 0

    likely = {to: likeness(to) for to in allowed}
    best = max(likely.values())
    nearest = [repr(to) for to, ratio in likely.items() if ratio == best]
    return f"; did you mean {' or '.join(nearest)}?" if best >= 0.75 and len(nearest) < 3 else ""


def _suggestion(name: str) -> str:
    if texture := _TEXTURE.fullmatch(re.sub(r"\s", "", name.lower())):
        return _hint(texture[1], TEXTURES) if texture[1] not in TEXTURES else _hint(_key(texture[2]), BANDS)
    return _hint(_key(name), BANDS)


_ALLOWED = f"use {', '.join(BANDS)}, or glcm_KIND(BAND) with KIND one of {', '.join(TEXTURES)}"


class _Reading(NamedTuple):
    """What the name of a band says."""

    means: dict[str, str | None]  # sensor -> our name, for every sensor that may have a band of this name
    fits: tuple[str, ...]  # those of them that number the band so; a wavelength or a colour stands without
    rank: int = 0  # see `_SECOND`


def _read(name: str, sensor: str | None = None) -> _Reading | None:
    """Return what a name says, for all sensors or for one, or None if it says nothing or contradicts itself."""
    sensors, text = ((sensor,) if sensor else tuple(SENSORS)), name.strip().lower()
    means: dict[str, str | None] = {}
    if texture := _TEXTURE.fullmatch(re.sub(r"\s", "", text)):
        base = _read(texture[2], sensor) if texture[1] in TEXTURES else None
        means.update({s: f"glcm_{texture[1]}({band})" for s, band in (base.means if base else means).items() if band})
        return _Reading(means, tuple(means)) if means else None
    if len(text) <= LONGEST and (product := _PRODUCT.fullmatch(text)):
        sensors, text = tuple(s for s in sensors if s == _sensor(product[1])), product[2]
    text, common = _wavelength(text)
    text = _NUMBER_AND_NAME.sub(r"\1,", text)
    keys = [key for part in re.split(r"[][(),:;/|]|\s[-–]\s", text) if (key := _key(part))]
    numbered: list[dict[str, str | None]] = []
    for key in keys:
        own = {s: _OWN[s][key] for s in sensors if key in _OWN[s]} or (_loose(key, sensor) if sensor else {})
        if not re.match(r"(s[rt])?b\d", key) and key == keys[0] and None in {_COMMON.get(key, ""), *own.values()}:
            means.update(own or dict.fromkeys(sensors))
            return _Reading(means, tuple(means))  # such as "AOT, aerosol optical thickness (at 550 nm)"
        if key in _COMMON:
            common.add(_COMMON[key])
        elif own:
            numbered.append(own)
        elif not re.fullmatch(r"centralwavelength|(surface)?reflectance|\d0m", key):
            return None
    fits = tuple(s for s in sensors if all(s in n and (not common or n[s] in common) for n in numbered))
    if len(common) == 1:
        means.update({s: band for s in sensors for band in common})
    elif not common and numbered:
        means.update({s: numbered[0][s] for s in fits if len({n[s] for n in numbered}) == 1})
    return _Reading(means, fits or sensors, max(_SECOND.get(key, 0) for key in keys or [""])) if means else None


def _loose(key: str, sensor: str) -> dict[str, str | None]:
    """Return a band of a sensor by its number alone, "B04" or "SR_B4" for B4, but no temperature for a reflectance."""
    number = re.sub(r"^(?:s[rt])?b0*(?=\d)", "b", key)
    elsewhere = {bands[key] == "thermal" for bands in _OWN.values() if key in bands}
    if number not in _OWN[sensor] or elsewhere == {_OWN[sensor][number] != "thermal"}:
        return {}
    return {sensor: _OWN[sensor][number]}


def _wavelength(text: str) -> tuple[str, set[str | None]]:
    """Return a name without the wavelength in it, and our name of the band of that wavelength, if there is one."""
    if (match := _WAVELENGTH.search(text)) is None:
        return text, set()
    ends = [float(end) for end in match.group(1, 2) if end]
    nm = sum(ends) / len(ends) * (1 if match[3].startswith("n") else 1000)
    wide = max(ends) > 1.3 * min(ends)  # panchromatic
    bands = {band for low, high, band in _WAVELENGTHS if low <= nm <= high and not wide}
    return text[: match.start()] + text[match.end() :], bands


def _sensors_of(readings: Iterable[_Reading], sensors: Iterable[str]) -> list[str]:
    """Return the sensors that may have bands of all these names."""
    readings = list(readings)
    may = [s for s in sensors if all(s in r.means for r in readings)]
    return [s for s in may if all(s in r.fits for r in readings)] or may


def _only_counted(names: Sequence[str | None]) -> bool:
    """Whether names may be nothing but the numbers of a file's bands, "Band 1" to "Band 12"."""
    return len(names) > 1 and all(_key(name or "") == f"b{i}" for i, name in enumerate(names, 1))


def name_bands(
    names: Sequence[str | None],  # name of each band as a file describes it or a user spells it; "-" leaves one out
    sensor: str | None = None,  # sensor, as `canonical_sensor` takes it; default: the names as a whole decide
    strict: bool = False,  # whether every name must be known, as where a user named the bands
) -> tuple[list[str | None], str | None, list[str]]:
    """Return our name of each band, None for one left out; the sensor, if one alone fits; and notes of what is odd.

    Bands that nothing here uses are left out, and so are names that nobody knows, which is noted. A band that stands
    for another one, such as Sentinel-2's B8A for B8, counts only where the other one is not there.

    >>> name_bands(["B2", "B3", "B4", "B8", "B8A", "B12", "SCL"])
    (['blue', 'green', 'red', 'nir', None, 'swir2', None], 'sentinel2', [])

    Raises:
        DataError: A band has no name, or one that is nearly right; the names mean other bands on other sensors, or are
            those of several sensors or of another one than `sensor`; or no name is known.
    """
    sensor = canonical_sensor(sensor) if sensor is not None else None
    readings: dict[int, _Reading] = {}
    unknown = []
    for i, name in enumerate(names):
        if not name or not name.strip():
            raise DataError(f"band {i + 1} has no description; name all of them by `bands`: blue,green,red,nir")
        if name.strip() == "-":
            continue
        if reading := _read(name, sensor):
            readings[i] = reading
        elif sensor and ((other := _read(name)) or re.fullmatch(r"(s[rt])?b\d+[a-z]?", _key(name))):
            of = f", but of {', '.join(other.means)}" if other else ""
            raise DataError(f"{name!r} is no band of {sensor}{of}: name the right sensor, or the bands by `bands`")
        elif (hint := _suggestion(name)) or strict:
            raise DataError(f"unknown band {name!r}: {_ALLOWED}{hint}")
        else:
            unknown.append(i)

    sensors = _sensors_of(readings.values(), [sensor] if sensor else SENSORS)
    what_to_do = "name the sensor, or the bands by `bands`"
    if not sensors:
        last = next(i for i in readings if not _sensors_of([r for j, r in readings.items() if j <= i], SENSORS))
        raise DataError(
            f"{names[last]!r} is a band of {', '.join(readings[last].means)}, the names before it are of other "
            "sensors: name the bands by `bands`"
        )
    if doubtful := [i for i, r in readings.items() if len({r.means[s] for s in sensors}) > 1][:4]:
        meanings: dict[str, list[str]] = {}
        for s in sensors:
            meanings.setdefault(", ".join(readings[i].means[s] or "unused" for i in doubtful), []).append(s)
        texts = " or ".join(f"{bands} ({', '.join(of)})" for bands, of in meanings.items())
        raise DataError(f"{', '.join(repr(names[i]) for i in doubtful)} can be {texts}: {what_to_do}")
    if sensor is None and _only_counted(names):
        raise DataError(f"{names[0]!r} to {names[-1]!r} may only count the bands of the file: {what_to_do}")

    out: list[str | None] = [None] * len(names)
    for i, reading in readings.items():
        band = reading.means[sensors[0]]
        if not any(r.means[sensors[0]] == band and r.rank < reading.rank for r in readings.values()):
            out[i] = band
    if not any(out) and (readings or unknown):
        shown = ", ".join(repr(names[i]) for i in [*unknown, *readings][:4])
        raise DataError(f"no band used here is named by {shown}: {_ALLOWED}")
    left_out = ", ".join(f"{i + 1} ({names[i]!r})" for i in unknown)
    notes = [f"bands of unknown names are left out: {left_out}; `bands` names them"] if unknown else []
    return out, sensors[0] if len(sensors) == 1 else None, notes


def described_otherwise(
    given: Sequence[str],  # name of each band as a user spells it, see `name_bands`
    described: Sequence[str | None],  # description of each band in the file
    sensor: str | None = None,  # sensor, as `canonical_sensor` takes it
) -> list[tuple[int, str, str]]:
    """Return the bands that the file clearly describes as others than those given: number from 1, described, given.

    >>> described_otherwise(["blue", "green", "nir"], ["B04 (665 nm)", "green", "QA60"])
    [(1, 'red', 'blue'), (3, 'QA60', 'nir')]
    """
    if _only_counted(described):
        return []
    sensor = canonical_sensor(sensor) if sensor is not None else None
    readings = [_read(text or "", sensor) for text in described]
    sensors = _sensors_of([r for r in readings if r], [sensor] if sensor else SENSORS) or SENSORS
    out = []
    for i, (name, reading) in enumerate(zip(name_bands(given, sensor, strict=True)[0], readings, strict=True)):
        says = {reading.means.get(s, name) for s in sensors} if reading else {name}
        kinds = {(band or "").partition("_")[0] for band in (name, *says)}
        if name and len(says) == 1 and name not in says and kinds != {"thermal"}:
            out.append((i + 1, says.pop() or str(described[i]), name))
    return out
