"""Landsat 4 to 9, TM, ETM+, OLI and TIRS: Collections 1 and 2, Level 1 and 2, a TIF per band and the MTL beside.

Level 1 becomes reflectance at the top of the atmosphere, and brightness temperature; Level 2 is reflectance and
temperature of the surface. Formats: Landsat 8-9 Collection 2 Level 2 Science Product Guide (LSDS-1619), Level 1 Data
Format Control Book (LSDS-1822), and for Collection 1 LSDS-1834.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from posixpath import basename, dirname, join
from typing import Any

from ...errors import DataError
from ...reading import DEPTH, parse_json, parse_number, parse_xml, refusing
from .names import SENSORS, canonical_sensor
from .product import Flag, Folder, Part, Product

__all__ = ["read_landsat"]

ODD = "no metadata that can be used", "download the product again"
METADATA = re.compile(r"(?i)(.*)_MTL\.(json|txt|xml)$")

QA_PIXEL = {
    "fill": (1 << 0, (1 << 0,)),
    "dilated": (1 << 1, (1 << 1,)),
    "cirrus": (1 << 2, (1 << 2,)),
    "clouds": (1 << 3, (1 << 3,)),
    "shadows": (1 << 4, (1 << 4,)),
}
"""Of Collection 2; snow is bit 5."""
BQA = {
    "fill": (1, (1,)),
    "clouds": (1 << 4, (1 << 4,)),
    "shadows": (3 << 7, (3 << 7,)),
    "cirrus": (3 << 11, (3 << 11,)),
    "saturated": (3 << 2, (1 << 2, 2 << 2, 3 << 2)),
}
"""Of Collection 1, Level 1: what it is confident of, and how many bands are saturated; snow is bits 9 and 10."""
PIXEL_QA = {
    "fill": (1, (1,)),
    "shadows": (1 << 3, (1 << 3,)),
    "clouds": (1 << 5, (1 << 5,)),
    "cirrus": (3 << 8, (3 << 8,)),
}
"""Of Collection 1, Level 2; snow is bit 4."""
DROPPED = 1 << 9  # of QA_RADSAT of TM and ETM+: no detector saw it
SURFACE = {"sr": (1e-4, 0.0), "bt": (0.1, 0.0)}  # scale and offset of Collection 1, Level 2

QUALITY = {  # what names a file of flags, and how it ends
    "FILE_NAME_QUALITY_L1_PIXEL": "_QA_PIXEL.TIF",
    "FILE_NAME_BAND_QUALITY": "_BQA.TIF",
    "FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION": "_QA_RADSAT.TIF",
}
OLI = ("landsat8", "landsat9")

Tree = dict[str, dict[str, str]]  # group -> key -> value


def read_landsat(folder: Folder) -> Product | None:
    """Return the Landsat product of a folder, as any of its MTL files tells; see `opening.Reader`."""
    found: dict[str, dict[str, str]] = {}
    for name in folder.names:
        if match := METADATA.fullmatch(name):
            found.setdefault(match[1], {})[match[2].lower()] = name
    if (stem := folder.the_one({k: list(v.values()) for k, v in found.items()})) is None:
        return None
    files = found[stem]
    metadata = folder.chosen or next(files[kind] for kind in ("json", "txt", "xml") if kind in files)
    return _Reader(folder, metadata, stem).product()


class _Reader:
    """What one MTL says."""

    def __init__(self, folder: Folder, metadata: str, stem: str):
        self.folder, self.metadata, self.stem = folder, metadata, stem
        self.where = folder.named(metadata)
        self.groups = _groups(folder.read_text(metadata), metadata, self.where)
        self.names = {name.lower(): name for name in folder.names}
        self.first = "PRODUCT_METADATA" in self.groups  # Collection 1
        self.about = self.groups.get("PRODUCT_METADATA" if self.first else "PRODUCT_CONTENTS", {})
        name = self.value("LANDSAT_PRODUCT_ID", "") or stem
        self.level2 = "_L2" in name or self.about.get("PROCESSING_LEVEL", "").startswith("L2")

    def product(self) -> Product:
        """Return the product."""
        craft, instrument = self.value("SPACECRAFT_ID"), self.value("SENSOR_ID", "")
        if instrument.startswith("MSS") or not re.fullmatch(r"(?i)landsat_?[45789]", craft):
            raise DataError(
                f"{self.where}: {craft} {instrument} is not read; TM, ETM+, OLI and TIRS of Landsat 4 to 9 are"
            )
        sensor = canonical_sensor(craft)
        bands, flags, notes = self.surface(sensor) if self.has_surface() else self.delivered(sensor)
        if not bands:
            raise DataError(f"{self.where}: names no band that is used here; download the product again")
        date = f"{self.value('DATE_ACQUIRED')}T{self.value('SCENE_CENTER_TIME')[:8]}Z"
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", date):
            raise DataError(f"{self.where}: was taken at {date!r}, which is no time; download the product again")
        zone = self.value("UTM_ZONE", "")
        return Product(
            bands,
            flags,
            sensor,
            date,
            notes,
            (self.metadata,),
            abs(int(self.number("UTM_ZONE"))) if zone else None,
        )

    def value(self, key: str, default: str | None = None, level2: bool = False) -> str:
        """Return what the MTL says; of keys that stand there for both levels, that of one."""
        for group, items in self.groups.items():
            if key in items and group.startswith("LEVEL2") == level2:
                return items[key]
        if default is None:
            raise DataError(f"{self.where}: lacks {key}; download the product again")
        return default

    def number(self, key: str, level2: bool = False) -> float:
        """Return a finite number."""
        text = self.value(key, None, level2)
        with refusing(self.where, DataError, f"{key} is {text!r}, no number", "download the product again"):
            return parse_number(text)

    def there(self, file: str) -> str:
        """Return the name, in its folder, of a file that the MTL names: some tools write .tif for .TIF."""
        name = join(dirname(self.metadata), file)
        return name if name in self.folder.names else self.names.get(name.lower(), name)

    def shape(self, key: str, thermal: bool) -> tuple[int, int] | None:
        """Return the rows and columns of a band, if they are told."""
        kind = "PANCHROMATIC" if key == "8" else "THERMAL" if thermal else "REFLECTIVE"
        if not self.value(f"{kind}_LINES", ""):
            return None
        return int(self.number(f"{kind}_LINES")), int(self.number(f"{kind}_SAMPLES"))

    def delivered(self, sensor: str) -> tuple[dict[str, Part], tuple[Flag, ...], tuple[str, ...]]:
        """Return bands, flags and notes of files that the MTL names."""
        bands, saturation = {}, {}
        for name, file in self.about.items():
            if not name.startswith("FILE_NAME_BAND_"):
                continue
            key = name.removeprefix("FILE_NAME_BAND_")
            ours = SENSORS[sensor].get(f"b{key.lower()}") or SENSORS[sensor].get(key.lower())
            if ours is not None:
                bands[ours] = self.part(self.there(file), key, ours)
                bit = {"6_VCID_2": 8}.get(key) or int(re.sub(r"^ST_B|_VCID_1$", "", key)) - 1
                saturation[ours] = 1 << bit
        if "thermal_high" in bands:  # nearest to the thermal band of Landsat 8
            bands["thermal"], saturation["thermal"] = bands["thermal_high"], saturation["thermal_high"]
        if sensor in OLI:
            saturation.pop("thermal", None)  # TIRS is not in it
        flags: list[Flag] = []
        named = (self.there(self.about.get(key, f"{basename(self.stem)}{end}")) for key, end in QUALITY.items())
        pixel, bqa, radsat = (name if name in self.folder.names else "" for name in named)
        if pixel:
            flags.append(Flag(pixel, QA_PIXEL))
        if bqa and (self.value("COLLECTION_NUMBER", "") or "_01_" in self.stem):  # before, its bits meant other things
            flags.append(Flag(bqa, {k: v for k, v in BQA.items() if k != "cirrus" or sensor in OLI}))
        if radsat and sensor not in OLI:
            flags.append(Flag(radsat, {"saturated": (DROPPED, (DROPPED,))}))
        if radsat:
            flags += [Flag(radsat, {"saturated": (bit, (bit,))}, of=band) for band, bit in saturation.items()]
        return bands, tuple(flags), self.unmasked(flags)

    def part(self, file: str, key: str, ours: str) -> Part:
        """Return where a band is, and how its numbers become values."""
        thermal = ours.startswith("thermal")
        shape, what = self.shape(key, thermal), "TEMPERATURE" if thermal else "REFLECTANCE"
        if self.level2:
            scale, offset = (self.number(f"{what}_{term}_BAND_{key}", level2=True) for term in ("MULT", "ADD"))
            return Part(file, scale=scale, offset=offset, fill=0, shape=shape)
        if thermal:
            scale, offset = (self.number(f"RADIANCE_{term}_BAND_{key}") for term in ("MULT", "ADD"))
            planck = self.number(f"K1_CONSTANT_BAND_{key}"), self.number(f"K2_CONSTANT_BAND_{key}")
            if min(planck) <= 0:
                raise DataError(f"{self.where}: K1 or K2 of band {key} is not positive; download the product again")
            return Part(file, scale=scale, offset=offset, fill=0, planck=planck, shape=shape)
        height = self.number("SUN_ELEVATION")
        if height > 90:
            raise DataError(f"{self.where}: SUN_ELEVATION is {height:g}, more than 90; download the product again")
        if height <= 0:
            raise DataError(f"{self.where}: taken at night (SUN_ELEVATION {height:g}), so it shows no reflectance")
        scale, offset = (self.number(f"REFLECTANCE_{term}_BAND_{key}") for term in ("MULT", "ADD"))
        sine = math.sin(math.radians(height))
        return Part(file, scale=scale / sine, offset=offset / sine, fill=0, shape=shape)

    def surface_files(self) -> dict[str, str]:
        """Return the files of Collection 1, Level 2, which no MTL names, by what stands after the product's name."""
        start = f"{self.stem}_".lower()
        return {name[len(start) :].lower(): name for name in self.folder.names if name.lower().startswith(start)}

    def has_surface(self) -> bool:
        """Whether bands of Collection 1, Level 2, lie beside an MTL of Level 1; raises `DataError` if both do."""
        if not self.first or not any(re.match(r"sr_band\d\.tif", name) for name in self.surface_files()):
            return False
        both = [self.there(file) for key, file in self.about.items() if re.fullmatch(r"FILE_NAME_BAND_[1-7]", key)]
        if there := [basename(file) for file in both if file in self.folder.names]:
            raise DataError(
                f"{self.where}: bands of both levels lie beside it, {there[0]} and "
                f"{basename(self.stem)}_sr_band1.tif; put each level into a folder of its own"
            )
        return True

    def surface(self, sensor: str) -> tuple[dict[str, Part], tuple[Flag, ...], tuple[str, ...]]:
        """Return bands, flags and notes of Collection 1, Level 2, as ESPA delivered it."""
        files, flags, bands = self.surface_files(), list[Flag](), dict[str, Part]()
        for name, file in files.items():
            match = re.fullmatch(r"(sr|bt)_band(\d+)\.tif", name)
            ours = SENSORS[sensor].get(f"b{match[2]}") if match else None
            if match and ours and (match[1] == "bt") == (ours == "thermal"):
                scale, offset = SURFACE[match[1]]
                bands[ours] = Part(file, 1, scale, offset, -9999, shape=self.shape(match[2], ours == "thermal"))
                if "radsat_qa.tif" in files and not (sensor in OLI and ours == "thermal"):
                    bit = 1 << int(match[2])
                    flags.append(Flag(files["radsat_qa.tif"], {"saturated": (bit, (bit,))}, of=ours))
        if file := files.get("pixel_qa.tif", ""):
            kinds = {k: v for k, v in PIXEL_QA.items() if k != "cirrus" or sensor in OLI}
            flags.insert(0, Flag(file, kinds))
        return bands, tuple(flags), self.unmasked(flags)

    def unmasked(self, flags: list[Flag]) -> tuple[str, ...]:
        """Return what is to be said where nothing masks clouds."""
        masked = any("clouds" in flag.kinds for flag in flags)
        return () if masked else (f"{self.where}: has no flags of clouds, so none are masked",)


def _groups(text: str, name: str, where: Any) -> Tree:
    """Return an MTL in any of its three languages."""
    kind = name.rpartition(".")[2].lower()
    tree: Any
    if kind == "json":
        tree = parse_json(text, where, DataError)
    elif kind == "xml":
        top = parse_xml(text, where, DataError)
        with refusing(where, DataError, *ODD):
            tree = {top.tag: _once((group.tag, _once((i.tag, i.text or "") for i in group)) for group in top)}
    else:
        with refusing(where, DataError, *ODD):
            tree = _odl(text)
    root = tree.get("LANDSAT_METADATA_FILE") or tree.get("L1_METADATA_FILE") if isinstance(tree, Mapping) else None
    groups = root if isinstance(root, Mapping) else {}
    out = {
        str(group): {str(key): str(value).strip() for key, value in items.items()}
        for group, items in groups.items()
        if isinstance(items, Mapping)
    }
    if not out:
        raise DataError(f"{where}: no metadata of Landsat, or cut short; download the product again")
    return out


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping; raises `ValueError` for a name that stands twice, with other values."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if found.setdefault(key, value) != value:
            raise ValueError(f"{key} stands twice")
    return found


def _odl(text: str) -> dict[str, Any]:
    """Return groups within groups, as an MTL.txt writes them; one that is not closed is left out."""
    stack: list[tuple[str, list[tuple[str, Any]]]] = [("", [])]
    for line in text.splitlines():
        key, sign, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            stack.append((value, []))
            if len(stack) > DEPTH:
                raise ValueError(f"groups nested more than {DEPTH} deep")
        elif key == "END_GROUP" and len(stack) > 1:
            name, items = stack.pop()
            stack[-1][1].append((name, _once(items)))
        elif sign:
            stack[-1][1].append((key, value.strip('"')))
    return _once(stack[0][1])
