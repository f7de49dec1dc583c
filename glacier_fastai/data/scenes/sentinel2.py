"""Sentinel-2, Level 1C and 2A, as .SAFE: JPEG 2000 of each band, each at its finest resolution.

Format: Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD). Reflectance is (number + offset) over the
quantification value; the offset, since processing baseline 04.00, is what GDAL's driver does not show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from posixpath import dirname
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ...errors import DataError
from ...reading import parse_number, parse_xml, refusing
from .names import SENSORS
from .product import Flag, Folder, Part, Product

__all__ = ["read_sentinel2"]

METADATA = re.compile(r"(?i)(?:.*/)?(?:MTD_MSI|S2\w_\w+_MTD_SAF)L(1C|2A)[^/]*\.xml")
IMAGE = re.compile(r"(.*GRANULE/[^/]+/)IMG_DATA/(?:[^/]*/)?(?:[^/]*_)?(B\d[\dA]|SCL)(?:_([126]0)m)?\.jp2")
IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
SCL = {
    "fill": (255, (0,)),
    "saturated": (255, (1,)),
    "shadows": (255, (3,)),
    "clouds": (255, (8, 9)),
    "cirrus": (255, (10,)),
}
"""Scene classification of Level 2A; 2 is dark ground, as in the shade of mountains, 11 snow."""
CLASSI = ({"clouds": (1, (1,))}, {"cirrus": (1, (1,))})
"""Bands of MSK_CLASSI of Level 1C, since baseline 04.00; the third is snow."""
MASKS = {"OPAQUE": "clouds", "CIRRUS": "cirrus"}  # polygons of MSK_CLOUDS, before


def read_sentinel2(folder: Folder) -> Product | None:
    """Return the Sentinel-2 product of a folder; see `opening.Reader`."""
    found = {name: [name] for name in folder.names if METADATA.fullmatch(name)}
    return None if (metadata := folder.the_one(found)) is None else _Reader(folder, metadata).product()


class _Reader:
    """What one .SAFE holds."""

    def __init__(self, folder: Folder, metadata: str):
        self.folder, self.metadata = folder, metadata
        self.where = folder.named(metadata)
        self.root = parse_xml(folder.read_text(metadata), self.where, DataError)
        self.level = "2A" if re.search(r"(?i)L2A[^/]*$", metadata) else "1C"
        self.notes: list[str] = []
        base = f"{home}/" if (home := dirname(metadata)) else ""
        self.here = [name for name in folder.names if name.startswith(base)]
        said = [f"{base}{e.text}.jp2" for tag in ("IMAGE_FILE", "IMAGE_FILE_2A") for e in self.root.iter(tag)]
        self.images: dict[str, dict[int, str]] = {}  # by band and resolution, metres; that of Level 1C is not named
        granules: dict[str, bool] = {}  # and whether there is anything of it
        for name in [*said, *self.here]:
            match = IMAGE.fullmatch(name)
            if match and bool(match[3]) == (self.level == "2A"):
                granules[match[1]] = granules.get(match[1], False) or name in self.here
                sizes, size = self.images.setdefault(match[2], {}), int(match[3] or 0)
                other = IMAGE.fullmatch(sizes.get(size, ""))
                if other and other[0] != name and other[1] == match[1] and {other[0], name} <= {*self.here}:
                    raise DataError(f"{self.where}: {name} and {other[0]} are both {match[2]}; remove the wrong one")
                sizes[size] = name
        tiles = [granule for granule in granules if granules[granule]] or [*granules]
        if len(tiles) != 1:
            what = f"holds {len(tiles)} tiles" if tiles else "names no image of a band, nor is one there"
            raise DataError(f"{self.where}: {what}; download the product of one tile")
        self.granule = tiles[0]

    def product(self) -> Product:
        """Return the product."""
        shapes, zone = self.tile()
        scaling, bands, whole = self.scaling(), dict[str, Part](), set[str]()
        there = {size for sizes in self.images.values() for size, name in sizes.items() if name in self.here}
        for key, sizes in sorted(self.images.items(), key=lambda item: (item[0] == "B8A", item[0])):
            ours, usable = SENSORS["sentinel2"].get(key.lower()), there & {*sizes, self.finest(key)}
            if ours is None or ours in whole or (ours in bands and not usable):
                continue
            whole |= {ours} if usable else set()
            size, said = min(usable or sizes), min(sizes)
            file = sizes.get(size) or sizes[said].replace(f"R{said}m/", f"R{size}m/").replace(
                f"_{said}m.", f"_{size}m."
            )
            if size > min(said, self.finest(key)) or ours in bands:
                self.notes.append(f"{self.where}: {ours} is read from {file}, as no finer image is there")
            scale, offset = scaling[key]
            bands[ours] = Part(file, 1, scale, offset, 0, shape=shapes.get(size or self.finest(key)))
        if not bands:
            raise DataError(f"{self.where}: names no image of a band that is used here; download the product again")
        flags, polygons = self.masks()
        return Product(
            bands,
            flags,
            "sentinel2",
            self.date(),
            tuple(self.notes),
            (self.metadata,),
            zone,
            polygons,
        )

    def finest(self, key: str) -> int:
        """Return the resolution that a band was taken at, metres."""
        return 10 if key in ("B02", "B03", "B04", "B08") else 60 if key in ("B01", "B09", "B10") else 20

    def text(self, tag: str) -> str:
        """Return what the metadata say, "" if nothing."""
        return next(((element.text or "").strip() for element in self.root.iter(tag)), "")

    def number(self, text: str, what: str) -> float:
        """Return a finite number."""
        with refusing(self.where, DataError, f"{what} is {text!r}, no number", "download the product again"):
            return parse_number(text)

    def scaling(self) -> dict[str, tuple[float, float]]:
        """Return scale and offset of each band."""
        tag = "QUANTIFICATION_VALUE" if self.level == "1C" else "BOA_QUANTIFICATION_VALUE"
        if len(said := {(e.text or "").strip() for t in (tag, f"L2A_{tag}") for e in self.root.iter(t)}) > 1:
            raise DataError(f"{self.where}: {tag} is {' and '.join(sorted(said))}; download the product again")
        per_one = self.number(next(iter(said), ""), tag)
        if per_one <= 0:
            raise DataError(f"{self.where}: {tag} is {per_one:g}; download the product again")
        offsets: dict[str, float] = {}
        elements = [*self.root.iter("RADIO_ADD_OFFSET" if self.level == "1C" else "BOA_ADD_OFFSET")]
        for element in elements:
            number = self.number(element.get("band_id", ""), "band_id")
            if number not in range(len(IDS)):
                raise DataError(f"{self.where}: an offset is of band_id {number:g}; bands are 0 to 12")
            offset = self.number(element.text or "", element.tag)
            if offsets.setdefault(IDS[int(number)], offset) != offset:
                raise DataError(f"{self.where}: band_id {number:g} has two offsets; download the product again")
        baseline = self.text("PROCESSING_BASELINE")
        if not elements and re.fullmatch(r"\d{1,2}\.\d\d", baseline) and 4 <= float(baseline) < 90:
            self.notes.append(f"{self.where}: names no offset, as products since baseline 04.00 do, so none is added")
        return {key: (1 / per_one, offsets.get(key, 0.0) / per_one) for key in IDS} | {"SCL": (1.0, 0.0)}

    def date(self) -> str:
        """Return when it was taken."""
        text = self.text("PRODUCT_START_TIME") or self.text("DATATAKE_SENSING_START")
        if not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text):
            raise DataError(f"{self.where}: PRODUCT_START_TIME is {text!r}, no time; download the product again")
        return f"{text[:19]}Z"

    def tile(self) -> tuple[dict[int, tuple[int, int]], int | None]:
        """Return rows and columns by resolution, and the UTM zone, as the tile's own metadata say."""
        name = f"{self.granule}MTD_TL.xml"
        if name not in self.here:
            return {}, None
        where = self.folder.named(name)
        root = parse_xml(self.folder.read_text(name), where, DataError)
        shapes = {}
        with refusing(where, DataError, "its size is no number", "download the product again"):
            for size in root.iter("Size"):
                rows, columns = (int(parse_number(size.findtext(tag) or "")) for tag in ("NROWS", "NCOLS"))
                shapes[int(parse_number(size.get("resolution", "")))] = rows, columns
        code = next((e.text or "" for e in root.iter("HORIZONTAL_CS_CODE")), "")
        zone = re.fullmatch(r"EPSG:32[67](\d\d)", code.strip())
        return shapes, int(zone[1]) if zone else None

    def masks(self) -> tuple[tuple[Flag, ...], dict[str, list[Any]]]:
        """Return flags and polygons of clouds."""
        if there := {size: name for size, name in self.images.get("SCL", {}).items() if name in self.here}:
            return (Flag(there[min(there)], SCL),), {}
        quality = [name for name in self.here if name.startswith(f"{self.granule}QI_DATA/")]
        if name := next((name for name in quality if name.endswith("MSK_CLASSI_B00.jp2")), ""):
            return tuple(Flag(name, kinds, band) for band, kinds in enumerate(CLASSI, 1)), {}
        if name := next((name for name in quality if re.search(r"MSK_CLOUDS_[^/]*B00[^/]*\.gml$", name)), ""):
            where = self.folder.named(name)
            root = parse_xml(self.folder.read_text(name), where, DataError)
            polygons: dict[str, list[Any]] = {kind: [] for kind in MASKS.values()}
            for feature in root.iterfind(".//{*}MaskFeature"):
                if kind := MASKS.get((feature.findtext("{*}maskType") or "").strip()):
                    with refusing(where, DataError, "holds a damaged polygon", "download the product again"):
                        polygons[kind] += _polygons(feature)
            return (), polygons
        self.notes.append(f"{self.where}: has no mask of clouds, so none are masked")
        return (), {}


def _polygons(feature: Element) -> Iterator[dict[str, Any]]:
    """Yield polygons of GML, as GeoJSON has them."""
    for polygon in feature.iterfind(".//{*}Polygon"):
        rings = []
        for ring in polygon.iterfind(".//{*}posList"):
            numbers = np.array((ring.text or "").split(), float).reshape(-1, int(ring.get("srsDimension", "2")))
            if len(numbers) < 4 or not np.isfinite(numbers).all():
                raise ValueError("of fewer than four points, or no numbers")
            rings.append(numbers[:, :2].tolist())
        if rings:
            yield {"type": "Polygon", "coordinates": rings}
