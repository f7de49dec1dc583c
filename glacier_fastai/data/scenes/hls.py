"""Harmonized Landsat Sentinel-2 (HLS), L30 and S30: a TIF per band, and Fmask.

Format: HLS Product User Guide, version 2.0, https://lpdaac.usgs.gov/documents/1698/HLS_User_Guide_V2.pdf
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ...errors import DataError
from ...reading import refusing
from .names import SENSORS
from .product import Flag, Folder, Part, Product
from .units import ZERO_CELSIUS

__all__ = ["FILE", "hls_product", "read_hls"]

FILE = re.compile(r"(?i)((?:.*/)?HLS\.([LS])30\.T(\d\d)[A-Z]{3}\.(\d{7}T\d{6})\.v[12]\.\d)\.(B\d[\dA]|Fmask)\.tif$")
SENSOR = {"L": "landsat8", "S": "sentinel2"}  # whose names its bands have
NIR = "B8A"  # of S30, which is made like that of Landsat; B08 is broader
FMASK = {
    "fill": (255, (255,)),
    "cirrus": (1 << 0, (1 << 0,)),
    "clouds": (1 << 1, (1 << 1,)),
    "dilated": (1 << 2, (1 << 2,)),
    "shadows": (1 << 3, (1 << 3,)),
}
"""Snow is bit 4."""
FILL = -9999


def read_hls(folder: Folder) -> Product | None:
    """Return the HLS product of a folder; see `opening.Reader`."""
    found: dict[str, dict[str, str]] = {}
    for name in folder.names:
        if match := FILE.fullmatch(name):
            found.setdefault(match[1], {})[match[5].upper()] = name
    mine = {product: [n for n in folder.names if re.match(rf"{re.escape(product)}[._]", n)] for product in found}
    if (product := folder.the_one(mine, "name the .cmr.xml or .json of one")) is None:
        return None
    return hls_product(folder.path, product, found[product])


def hls_product(
    where: Any,  # for messages
    product: str,  # its name, as in `FILE`
    files: Mapping[str, str],  # by what stands at the end of their names, in upper case
) -> Product:
    """Return the product of some files."""
    match = FILE.fullmatch(f"{product}.Fmask.tif")
    assert match
    kind, zone, taken = match[2].upper(), int(match[3]), match[4]
    with refusing(f"{where}/{product}", DataError, f"{taken} is no day of a year and time"):
        time = datetime.strptime(taken, "%Y%jT%H%M%S")
        if taken[:4] != f"{time.year}":  # as day 366 becomes the next year's first
            raise ValueError("the year has 365 days")
    sensor, bands = SENSOR[kind], dict[str, Part]()
    for key in sorted(files, key=lambda key: key == NIR):
        ours = SENSORS[sensor].get(key.lower()) or SENSORS[sensor].get(re.sub("^B0", "b", key.upper()).lower())
        if ours == "thermal":
            bands[ours] = Part(files[key], 1, 0.01, ZERO_CELSIUS, FILL)
        elif ours:
            bands[ours] = Part(files[key], 1, 1e-4, 0.0, FILL)
    notes: tuple[str, ...] = ()
    flags = (Flag(files["FMASK"], FMASK),) if "FMASK" in files else ()
    if not flags:
        notes = (f"{where}: {product} has no Fmask, so no clouds are masked",)
    if not bands:
        raise DataError(f"{where}: {product} has no band that is used here; download it again")
    return Product(bands, flags, sensor, f"{time.isoformat()}Z", notes, zone=zone)
