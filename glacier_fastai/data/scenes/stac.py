"""Scenes as STAC items, from a file or a link, and items that an API finds.

https://github.com/radiantearth/stac-spec, versions 1.0 and 1.1, with the extensions eo and raster
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from ...errors import DataError, GlacierError
from ...reading import parse_json, parse_number, refusing
from ..paced import paced_session
from .address import Address, named
from .hls import FILE, FMASK, hls_product
from .landsat import QA_PIXEL
from .names import canonical_sensor, name_bands
from .product import Flag, Folder, Links, Part, Product
from .raster import check_within
from .sentinel2 import SCL
from .units import TAGS, ZERO_CELSIUS
from .web import text_at

if TYPE_CHECKING:
    from pystac import Item
    from requests import Response

__all__ = ["read_stac", "stac_items"]

COMMON = {  # common name of a band -> our names that it can be, the first one where nothing fits better
    **{name: name for name in ("blue", "green", "red", "nir", "pan")},
    **{"nir08": "nir", "swir16": "swir1", "swir22": "swir2", "lwir": "thermal", "lwir11": "thermal"},
}
PICTURES = ("visual", "overview", "thumbnail", "metadata")  # roles of what is no measurement
Kinds = Mapping[str, tuple[int, tuple[int, ...]]]
SCHEMES: dict[str, Kinds] = {"qa_pixel": QA_PIXEL, "scl": SCL, "fmask": FMASK}
"""Name of an asset, in lower case -> as `Flag.kinds`."""
MOST, ANSWERS, ANSWER = 10_000, 1000, 2**24  # items of an API, its answers to one search, and bytes of one
SECONDS, ALL = 60.0, 1800.0  # of waiting, see `paced_session`, and in which all are here
NUMBERS = ("raster:scale", "scale", "raster:offset", "offset", "raster:nodata", "nodata")


def read_stac(
    folder: Folder,  # whose file the user named is the item
) -> Product | None:
    """Return the product that a STAC item describes; None if it is no item.

    Bands are assets whose bands have common names; without any, assets whose names are those of a sensor's bands.

    Raises:
        DataError: It is damaged, has no asset that can be used, or one that lies where it may not.
    """
    if not (isinstance(folder, Links) or folder.chosen.lower().endswith(".json")):
        return None
    where = folder.path
    item = parse_json(folder.read_text(folder.chosen), where, DataError)
    if not isinstance(item, dict) or "stac_version" not in item:
        return None
    if item.get("type") != "Feature":
        raise DataError(f"{where}: a STAC {item.get('type')}, of many scenes; name one of its items")
    with refusing(where, DataError, "no STAC item that can be read"):
        return _product(folder, item)


def _product(folder: Folder, item: dict[str, Any]) -> Product:
    where, said, assets = folder.path, item.get("properties") or {}, item.get("assets") or {}
    if hls := _hls(folder, item):
        return hls
    sensor, notes = _sensor(said), list[str]()
    if sensor is None and folder.sensor:
        sensor = canonical_sensor(folder.sensor)
    found: dict[str, tuple[tuple[Any, ...], str, Part]] = {}
    for order, (key, asset) in enumerate(assets.items()):
        roles = [str(role).lower() for role in asset.get("roles") or ()]
        if not {*roles, key.lower()} & {*PICTURES}:
            for number, band, common in _bands(asset):
                ours = COMMON.get(common)
                jp2 = "jp2" in asset.get("type", "")  # beside a GeoTIFF, which is read faster
                rank = common == "nir08", roles and "data" not in roles and "reflectance" not in roles, jp2, order
                if ours and (ours not in found or rank < found[ours][0]):
                    found[ours] = rank, key, _part(folder, asset, band, number)
    if "nir" in found and found["nir"][0][0] and not (sensor or "").startswith("landsat"):
        notes.append(f"{where}: has no band nir; nir08, asset {found['nir'][1]!r}, stands for it")
    if not found:
        keys = [k for k in assets if k.lower() not in SCHEMES and _is_file(assets[k])]
        try:
            names = name_bands(keys, sensor)[0] if keys else []
        except DataError as err:
            raise DataError(f"{where}: {err}") from err
        for key, name in zip(keys, names, strict=True):
            if name:
                band = next((band for _, band, _ in _bands(assets[key])), {})
                found[name] = (), key, _part(folder, assets[key], band, 1)
    if not found:
        raise DataError(
            f"{where}: none of its {len(assets)} assets is a band by its common name ({', '.join(COMMON)}), so there "
            "is nothing to read"
        )
    flags = [
        Flag(_file(folder, asset), SCHEMES[key.lower()]) for key, asset in assets.items() if key.lower() in SCHEMES
    ]
    other = [k for k, a in assets.items() if "data-mask" in (a.get("roles") or ()) and k.lower() not in SCHEMES]
    flags += [Flag(_file(folder, assets[key]), {"fill": (-1, (0,))}) for key in other]
    parts = {band: part for band, (_, _, part) in found.items()}
    _mend_sentinel2(where, said, sensor, parts, notes)
    date = said.get("datetime") or said.get("start_datetime") or ""
    return Product(parts, tuple(flags), sensor, str(date), tuple(notes))


def _hls(folder: Folder, item: Mapping[str, Any]) -> Product | None:
    """Return the product of an item whose files are those of HLS, by their names or its own."""
    files, names = dict[str, str](), set[str]()
    for key, asset in (item.get("assets") or {}).items():
        match = FILE.fullmatch(urlsplit(str(asset.get("href"))).path) or FILE.fullmatch(f"{item.get('id')}.{key}.tif")
        if match and match[5].upper() not in files:  # some name each file twice, in a bucket too
            files[match[5].upper()] = _file(folder, asset)
            names.add(match[1].rpartition("/")[2])
    return hls_product(folder.path, names.pop(), files) if len(names) == 1 else None


def _bands(asset: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield number, what is said of it, and common name of the bands of an asset."""
    eo, raster, both = (asset.get(name) or [] for name in ("eo:bands", "raster:bands", "bands"))
    for n in range(max(map(len, (eo, raster, both)), default=0)):
        said = dict[str, Any]()
        for bands in (raster, both, eo):
            said |= bands[n] if n < len(bands) else {}
        yield n + 1, {**asset, **said}, str(said.get("eo:common_name") or said.get("common_name") or "").lower()


def _part(folder: Folder, asset: Mapping[str, Any], band: Mapping[str, Any], number: int) -> Part:
    if odd := next((k for k in NUMBERS if isinstance(band.get(k), bool)), None):
        raise DataError(f"{folder.path}: {odd} is true or false, no number")
    scale, offset = (
        next((parse_number(str(band[k])) for k in (f"raster:{name}", name) if band.get(k) is not None), None)
        for name in ("scale", "offset")
    )
    if TAGS.get(str(band.get("unit", "")).lower()) == "celsius" and scale is not None:
        offset = (offset or 0.0) + ZERO_CELSIUS
    if scale is not None and offset is None:
        offset = 0.0
    fill = next((float(band[k]) for k in ("raster:nodata", "nodata") if isinstance(band.get(k), int | float)), None)
    if not offset:
        fill = fill or None  # 0 may be dark ground
    return Part(_file(folder, asset), number, scale, offset, fill)


def _is_file(asset: Mapping[str, Any]) -> bool:
    kind = str(asset.get("type", "image")).lower()
    return kind.startswith("image") and not {*(asset.get("roles") or ())} & {*PICTURES}


def _file(folder: Folder, asset: Mapping[str, Any]) -> str:
    """Return where an asset lies: an address, or the name of a file beside or below the item."""
    href, where = str(asset["href"]), folder.path
    if isinstance(folder, Links):
        return folder.local(href)
    if isinstance(address := named(href) if re.match(r"(?i)(https?|s3)://", href) else None, Address):
        return address
    path = Path(unquote(href) if not (folder.root / href).exists() else href)
    if urlsplit(href).scheme or path.is_absolute():
        raise DataError(
            f"{where}: asset {href!r} is no file beside or below the item, and no https, http or s3 address"
        )
    check_within(folder.root / path, os.path.realpath(folder.root), str(where))
    return str(path)


def _sensor(said: Mapping[str, Any]) -> str | None:
    text = str(said.get("platform") or said.get("constellation") or "")
    try:
        return canonical_sensor(text) if text else None
    except GlacierError:
        return None


def _mend_sentinel2(
    where: Any, said: Mapping[str, Any], sensor: str | None, parts: dict[str, Part], notes: list[str]
) -> None:
    """Set right what catalogues say of Sentinel-2's offset, which files have since processing baseline 04.00."""
    if sensor != "sentinel2":
        return
    applied = said.get("earthsearch:boa_offset_applied") is True
    if applied and any(part.offset for part in parts.values()):
        notes.append(f"{where}: says an offset that its files have had already, as it says too; it is not added again")
        parts |= {band: replace(part, offset=0.0, fill=part.fill or None) for band, part in parts.items()}
    baseline = str(said.get("s2:processing_baseline") or "")
    if not baseline and re.fullmatch(r"\d\d\.\d\d", version := str(said.get("processing:version"))):
        baseline = version
    if not re.fullmatch(r"\d\d?(\.\d+)?", baseline):
        return
    if any(part.scale for part in parts.values()):
        if float(baseline) >= 4 and not applied and not any(part.offset for part in parts.values()):
            notes.append(f"{where}: says no offset, which products since baseline 04.00 have; none is added")
    else:
        offset = -0.1 if float(baseline) >= 4 and not applied else 0.0
        notes.append(f"{where}: says no scale; taken is that of Sentinel-2, 0.0001, offset {offset:g} ({baseline=!s})")
        parts |= {band: replace(part, scale=1e-4, offset=offset) for band, part in parts.items()}


def stac_items(
    api: str,  # address of a STAC API
    bbox: Sequence[float | str],  # west, south, east, north, degrees; west is larger across the date line
    start: str = "",  # first day, or month or year, as in 2020-07-01
    end: str = "",  # last one
    *,
    months: Collection[int] = (),  # months of the year, default all
    max_cloud: float = 100.0,  # largest share of clouds, percent; items that do not say it are taken
    collections: Sequence[str] = (),  # names of the API's collections, default all
) -> list[Item]:
    """Return the items that a STAC API finds, oldest first; `item.get_self_href()` is what `open_scene` takes.

    Pages are asked for of no other host, whatever the API's links say.

    Raises:
        DataError: The API does not answer, answers with nonsense, or finds nothing.
    """
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO
    from requests import Request
    from urllib3 import Retry

    address = named(api)
    if not isinstance(address, Address) or address.startswith("s3://"):
        raise DataError(f"{address}: no STAC API; its address begins with https:// or http://")
    west, south, east, north = _box(bbox)
    if wrong := [month for month in months if month not in range(1, 13)]:
        raise DataError(f"month {wrong[0]}: give 1 to 12")
    if not 0 <= max_cloud <= 100:
        raise DataError(f"max_cloud {max_cloud:g}: give percent, 0 to 100")

    def only_there(request: Request) -> Request:
        request.url = urljoin(answers[-1] if answers else address.url, request.url)
        there(request.url)
        return request

    def there(url: str) -> None:
        if urlsplit(url).netloc != urlsplit(address.url).netloc:
            strays.append(urlsplit(url).hostname)
            raise ValueError(url)

    def look(response: Response, **_: Any) -> None:
        if response.url in answers:
            raise ValueError("its pages lead in a circle")
        if len(answers) == ANSWERS:
            raise ValueError(f"more than {ANSWERS:,} answers")
        answers.append(response.url)
        stays(response)
        _bounded(response, until)

    def stays(response: Response, **_: Any) -> None:
        if response.is_redirect:
            there(urljoin(response.url, response.headers["location"]))

    found, strays, answers, until = [], list[str | None](), list[str](), time.monotonic() + ALL
    when = f"{start or '..'}/{end or '..'}" if start or end else None
    try:
        text_at(address, stays)  # which says what is wrong with a host better than the search does
        # it waits of its own: how long an API asks to wait has no bound
        busy = Retry(4, backoff_factor=1, status_forcelist=(429, 503), respect_retry_after_header=False)
        io = StacApiIO()
        io.session = paced_session(SECONDS, retries=busy)
        io.session.hooks["response"].append(look)
        client = Client.open(address.url, stac_io=io, timeout=SECONDS, request_modifier=only_there)
        search = client.search(
            method="GET",
            bbox=[west, south, east, north],
            datetime=when,
            collections=[*collections] or None,
            max_items=MOST,
        )
        for item in search.items():
            cloud = item.properties.get("eo:cloud_cover")
            if (cloud is None or cloud <= max_cloud) and (
                not months or item.datetime and item.datetime.month in months
            ):
                found.append(item)
    except Exception as err:  # whatever the library makes of nonsense
        if strays:
            raise DataError(f"{address}: leads to another host, {strays[0]}; name the API there") from None
        if isinstance(err, DataError):
            raise
        said = re.sub(r"[?&]\S*", "", " ".join(str(err).split()))[:160]  # without what may be secret
        raise DataError(
            f"{address}: no answer of a STAC API ({type(err).__name__}: {said}); check address, collections and dates"
        ) from None
    if not found:
        raise DataError(f"{address}: finds no item there and then with at most {max_cloud:g} % of clouds")
    for item in found:
        if not isinstance(named(item.get_self_href() or ""), Address):  # which leads to a file here
            raise DataError(f"{address}: item {item.id} has no link to itself by https, http or s3")
    return sorted(found, key=lambda item: (str(item.properties.get("datetime")), str(item.id)))


def _bounded(response: Response, until: float) -> None:
    """Read an answer, of whatever size it was when packed; requests itself would read all of it."""
    body = bytearray()
    for part in response.iter_content(2**16):
        body += part
        if len(body) > ANSWER:
            raise ValueError(f"an answer of more than {ANSWER:,} bytes")
        if time.monotonic() > until:
            raise ValueError(f"its answers take more than {ALL:g} s")
    response._content = bytes(body)


def _box(bbox: Sequence[float | str]) -> tuple[float, float, float, float]:
    with refusing(f"bbox {bbox}", DataError, "give west, south, east, north in degrees"):
        west, south, east, north = map(float, bbox)
        if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90 and west != east):
            raise ValueError("no box on the globe")
        return west, south, east, north
