"""From what a user names to a scene: a file, a folder with a file per band, or a product that a reader knows.

A package plugs in a reader of its own by an entry point of the group ``glacier_fastai.scenes``, a function such as
those of `READERS`:

    [project.entry-points."glacier_fastai.scenes"]
    aster = "its_package:read_aster"
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ...bands import BANDS, TERRAIN, Bands
from ...core.fill import NO_VALUE
from ...errors import DataError, did_you_mean
from ...reading import refusing
from .address import Address, named
from .archive import ARCHIVES, Archive
from .dem import SceneTerrain, Terrain
from .geotiff import SceneRaster
from .hls import read_hls
from .landsat import read_landsat
from .masks import Masked, check_keep
from .names import DAY, canonical_sensor, name_bands
from .product import Folder, Links, Part, Product
from .raster import local_file, parse_crs
from .scene import Scene, Stack, on_one_grid
from .sentinel2 import read_sentinel2
from .stac import read_stac
from .thermal import BrightnessTemperature
from .units import Given, by_band
from .web import is_json

__all__ = ["HowRead", "Reader", "open_scene", "scene_name"]

GROUP = "glacier_fastai.scenes"
NO_RASTER = (".json", ".xml", ".txt", *ARCHIVES)  # how metadata and archives end
log = logging.getLogger(__name__)

Reader = Callable[[Folder], Product | None]
"""Return the product that is in a folder, None if it is of another kind; raises `DataError` if it is damaged."""


class HowRead(TypedDict, total=False):
    """How a scene is to be read."""

    bands: Sequence[str] | Mapping[str, str] | None
    """Names of the file's bands, default its band descriptions; or band -> file, of a folder with a file per band."""
    sensor: str | None
    """One of `names.SENSORS`."""
    scale: Given
    """What the file's numbers are multiplied with, default as it says; see `units.by_band`."""
    offset: Given
    """What is added then."""
    resolution: float | None
    """Side of a pixel wanted, metres; default as delivered, and where bands differ that of the finest."""
    keep: Collection[str]
    """Of `masks.KINDS`: what flags speak of and has data all the same."""
    mask_buffer: float
    """Metres by which clouds and shadows are widened."""
    mask: str | os.PathLike | None
    """A mask of one's own: polygons, or a raster that is not 0 where pixels have no data."""
    dem: str | os.PathLike | None
    """An elevation model, of which elevation, slope, aspect and curvature are made, see `dem.Terrain`."""


def open_scene(
    what: str | os.PathLike,  # a raster file; a folder, an archive or the metadata of a product; or an address of them
    wanted: Collection[str] | None = None,  # bands that will be read, or computed of others; default all
    pixel_size: float | None = None,  # metres, to which bands of different sizes are brought; default the finest
    **how: Unpack[HowRead],
) -> Scene:
    """Open a scene; to be used as a context manager.

    >>> from tempfile import TemporaryDirectory
    >>> from glacier_fastai.data.sources.synthetic import write_scene
    >>> with TemporaryDirectory() as folder:
    ...     path, _ = write_scene(Path(folder) / "scene.tif", size=64)
    ...     with open_scene(path) as scene, open_scene(path, resolution=60) as coarse:
    ...         scene.bands, (coarse.height, coarse.width)
    (('blue', 'green', 'red', 'swir1', 'thermal'), (32, 32))

    Raises:
        DataError: There is no such scene, it is of no kind that is known, or damaged, or lacks what is said of it.
    """
    path, bands, own = named(what), how.get("bands"), how.get("mask")
    keep, buffer, resolution = check_keep(how.get("keep", ())), how.get("mask_buffer", 0.0), how.get("resolution")
    if resolution is not None and not 0 < resolution < 1e6:
        raise DataError(f"resolution {resolution}: give the side of a pixel in metres")
    with ExitStack() as undo:
        flags, polygons = [], dict[str, Any]()
        if isinstance(bands, Mapping) or not _is_raster(path):
            folder = Links(path, not isinstance(bands, Mapping)) if isinstance(path, Address) else _listed(path)
            undo.callback(folder.close)
            folder.sensor = how.get("sensor") or ""
            if isinstance(bands, Mapping):
                product = _by_hand(folder, bands, how.get("sensor"))
            else:
                product = _product(folder)
                with refusing(path, DataError, "its metadata name no time that it was taken at", "download it again"):
                    if product.date:
                        datetime.fromisoformat(product.date)
                agree = bool(folder.sensor) and product.sensor == canonical_sensor(folder.sensor)
                asked = ("bands", "scale", "offset") if agree else ("bands", "sensor", "scale", "offset")
                if given := next((k for k in asked if how.get(k)), None):
                    raise DataError(f"{path}: its metadata say all of its bands; leave out {given}")
            parts = _open_parts(folder, product, wanted, how)
            for part in parts:
                undo.callback(part.close)
            scene = on_one_grid(path, parts, resolution or pixel_size if _differ(product, parts) else resolution)
            scene.date, scene.sensor = product.date, product.sensor
            scene.notes += product.notes
            if isinstance(bands, Mapping):
                scene.by_hand = [[band, product.bands[band].file] for band in scene.bands]
            scene.also_close, scene.unpacked_from = [*scene.also_close, folder.close], folder.archive
            if not folder.archive:
                scene.other_files = [str(folder.local(name)) for name in product.metadata]
            flags = [
                (folder.local(f.file), folder.named(f.file), f)
                for f in product.flags
                if not f.of or f.of in scene.bands
            ]
            polygons = {**product.polygons}
        else:
            part = SceneRaster(path, bands, how.get("sensor"), scale=how.get("scale"), offset=how.get("offset"))
            undo.callback(part.close)
            if isinstance(path, Address) and wanted is not None:
                there = (*part.bands, *(TERRAIN if how.get("dem") else ()))
                needed = [b for b in Bands(wanted).made_of(there) if b in part.bands or b not in there]
                part.leave_out_others(needed or part.bands)
            scene = on_one_grid(path, [part], resolution)
            if bands and len(part.bands) < part.raster.count:  # which are left out
                scene.by_hand = [*part.numbers]
        if (dem := how.get("dem")) is not None:
            file, grid = undo.enter_context(Terrain(dem)), (scene.crs, scene.transform, (scene.height, scene.width))
            terrain = SceneTerrain(file, *grid, scene.path, _terrain_of(scene, wanted, file.path))
            if terrain.bands:
                scene = Stack(path, [scene, terrain])
            else:
                terrain.close()
        if flags or polygons or own is not None:
            scene = Masked(scene, flags, keep, buffer, None if own is None else named(own), polygons)
        elif keep or buffer:
            scene.notes.append(f"{path}: has no flags of clouds, so nothing is masked, and nothing to keep or to widen")
        undo.pop_all()
        return scene


def scene_name(
    what: str | os.PathLike,  # as in `open_scene`
) -> str:
    """Return by which name the maps of a scene are called.

    >>> scene_name("a/LC08_L1TP_01_MTL.txt"), scene_name("S2A_1.SAFE/MTD_MSIL1C.xml"), scene_name("HLS.L30.v2.0.tar.gz")
    ('LC08_L1TP_01', 'S2A_1', 'HLS.L30.v2.0')
    """
    path = named(what)
    name = path.name if isinstance(path, Address) else path.name or path.resolve().name
    if isinstance(path, Path) and name.upper().startswith("MTD_"):
        name = path.resolve().parent.name
    elif not path.is_dir() and not name.lower().endswith((*NO_RASTER, ".safe")):
        return path.stem
    for ends in (ARCHIVES[::-1], (".json", ".xml", ".txt"), (".safe",), ("_MTL", ".cmr", "_stac")):
        if end := next((end for end in ends if name.lower().endswith(end.lower())), ""):
            name = name[: -len(end)]
    return name


def _is_raster(path: Path | Address) -> bool:
    if isinstance(path, Address):
        return not is_json(path)
    return path.is_file() and not path.name.lower().endswith(NO_RASTER)


def _listed(path: Path) -> Folder:
    if not path.is_dir():
        local_file(path)
        if path.name.lower().endswith(ARCHIVES):
            return Archive(path)
    return Folder(path)


def _product(folder: Folder) -> Product:
    """Return the product that is in a folder, found by the readers built in, then by those of plug-ins."""
    if isinstance(folder, Links):
        if product := read_stac(folder):
            return product
        raise DataError(f"{folder.path}: no STAC item, and no raster; products are read from this disk")
    plug_ins, broken = _plug_ins()
    found = {kind: product for kind, read in {**READERS, **plug_ins}.items() if (product := read(folder))}
    if len(found) > 1:
        raise DataError(f"{folder.path}: holds products of several kinds, {', '.join(found)}; name the metadata of one")
    if found:
        return next(iter(found.values()))
    of_plug_ins = f"; {len(broken)} plug-ins cannot be used, as was said" if broken else ""
    raise DataError(
        f"{folder.path}: no product that is known ({', '.join((*READERS, *plug_ins))}){of_plug_ins}; name the file of "
        "each band (blue=B2.TIF, ...), or give one raster with all bands"
    )


@cache
def _plug_ins() -> tuple[dict[str, Reader], list[str]]:
    """Return the readers of installed packages, and a line about each that cannot be used, which is logged once."""
    found, broken = dict[str, Reader](), list[str]()
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            if point.name in READERS:
                raise ValueError("the name is taken")
            found[point.name] = point.load()
        except Exception as err:  # whatever a stranger's module raises at import
            why = " ".join(f"{type(err).__name__}: {err}".split())
            broken.append(f"scene reader {point.name!r}: {point.value} cannot be used ({why}); mend or uninstall it")
            log.warning(broken[-1])
    return found, broken


def _by_hand(folder: Folder, bands: Mapping[str, str], sensor: str | None) -> Product:
    parts: dict[str, Part] = {}
    for given, file in bands.items():
        band = name_bands([given], sensor, strict=True)[0][0]
        if not isinstance(folder, Links) and file not in folder.names:
            raise DataError(f"{folder.path}: no file {file!r} for band {given}{did_you_mean(file, folder.names)}")
        if band is None or band in parts:
            raise DataError(f"{folder.path}: band {given!r} is {'named twice' if band else 'not used here'}")
        parts[band] = Part(file, 0)
    days = {band: day[0] for band, part in parts.items() if (day := DAY.search(part.file.rpartition("/")[2]))}
    if len({*days.values()}) > 1:
        first, other = next((a, b) for a in days for b in days if days[a] != days[b])
        raise DataError(
            f"{folder.path}: bands of two dates, {first} of {days[first]} and {other} of {days[other]} by their names; "
            "give those of one"
        )
    return Product(parts, sensor=canonical_sensor(sensor) if sensor else None)


def _open_parts(folder: Folder, product: Product, wanted: Collection[str] | None, how: HowRead) -> list[Scene]:
    """Open the files of the bands wanted; of all bands, where some that are wanted are not there.

    The panchromatic band is finer than the others: it is read only where it is wanted.
    """
    bands = sorted(product.bands, key=[*BANDS].index)
    there = [*bands, *(TERRAIN if how.get("dem") is not None else ())]
    if wanted is not None and {*(needed := Bands(wanted).made_of(there))} <= {*there}:
        bands = [band for band in bands if band in needed] or bands[:1]
    elif len(bands) > 1:
        bands = [band for band in bands if band != "pan" or isinstance(how.get("bands"), Mapping)]
    groups: dict[tuple[Any, ...], dict[int, str]] = {}
    for band in bands:
        part = product.bands[band]
        if not _is_there(folder, part.file):
            by = f"which {product.metadata[0]} names" if product.metadata else "which it should have"
            raise DataError(f"{folder.path}: no file {part.file} for band {band}, {by}; download it again")
        twice = sum(1 for b in bands[: bands.index(band)] if product.bands[b] == part)
        groups.setdefault((part.file, part.fill, part.planck, twice), {})[part.band] = band
    for band in bands:
        if (factor := product.bands[band].scale) is not None and not 0 < factor < NO_VALUE:
            raise DataError(f"{folder.path}: the scale of {band} is {factor:g}, and not positive; download it again")
    flags = [flag.file for flag in product.flags if not flag.of or flag.of in bands]
    if missing := next((name for name in flags if not _is_there(folder, name)), None):
        raise DataError(f"{folder.path}: no file {missing}, which holds its masks; download it again")
    folder.fetch(dict.fromkeys((*(file for file, *_ in groups), *flags)))
    opened: list[Scene] = []
    with ExitStack() as undo:
        for (file, fill, planck, _), names in groups.items():
            parts = [product.bands[b] for b in names.values()]
            said = {b: (part.scale, part.offset) for b, part in zip(names.values(), parts, strict=True)}
            scale = {b: v for b, (v, _) in said.items() if v is not None} or _of_band(how.get("scale"), bands, names)
            offset = {b: v for b, (_, v) in said.items() if v is not None} or _of_band(how.get("offset"), bands, names)
            own = not any(scaling != (None, None) for scaling in said.values())
            read = {"scale": scale, "offset": offset, "own_scaling": own, "fill": fill, "called": folder.named(file)}
            scene = SceneRaster(folder.local(file), names, **read)
            undo.callback(scene.close)
            _check(product, scene, parts[0].shape)
            opened.append(BrightnessTemperature(scene, *planck) if planck else scene)
        undo.pop_all()
    return opened


def _is_there(folder: Folder, name: str) -> bool:
    """Return whether a file is there, as far as that is known without asking the network."""
    path = name if folder.archive else folder.local(name)
    return name in folder.names or isinstance(path, Address) or (isinstance(path, Path) and os.path.isfile(path))


def _check(product: Product, scene: SceneRaster, shape: tuple[int, int] | None) -> None:
    """Refuse a file that is not as the metadata say."""
    says = product.metadata[0] if product.metadata else "its metadata"
    if shape and shape != (scene.height, scene.width):
        raise DataError(
            f"{scene.path}: {scene.height} x {scene.width} px, but {says} says {shape[0]} x {shape[1]}; download the "
            "product again"
        )
    zone = re.match(r"\d+", parse_crs(scene.crs).utm_zone or "")
    if product.zone and zone and int(zone[0]) != product.zone:
        raise DataError(
            f"{scene.path}: in UTM zone {zone[0]}, but {says} says {product.zone}; download the product again"
        )


def _of_band(given: Given, bands: Sequence[str], names: Mapping[int, str]) -> Given:
    """Return scale or offset of a file's bands, as `units.by_band` takes it for all bands."""
    if given is None:
        return None
    values = dict(
        zip(bands, by_band(given, "scale or offset", bands, range(1, len(bands) + 1), len(bands)), strict=True)
    )
    return {band: value for band in names.values() if (value := values[band]) is not None} or None


def _differ(product: Product, parts: Sequence[Scene]) -> bool:
    """Return whether the bands of a product are of several resolutions, also of those that are not read."""
    if len({part.shape for band, part in product.bands.items() if part.shape and band != "pan"}) > 1:
        return True
    sides = [abs(part.transform.determinant) for part in parts]
    return max(sides) > 1.0001 * min(sides)


def _terrain_of(scene: Scene, wanted: Collection[str] | None, dem: Path | Address) -> list[str]:
    """Return the bands that an elevation model gives a scene."""
    lacking = [band for band in TERRAIN if band not in scene.bands]
    needed = TERRAIN if wanted is None else Bands(wanted).made_of((*scene.bands, *lacking))
    if own := [band for band in TERRAIN if band in scene.bands and band in needed]:
        scene.notes.append(f"{scene.path}: has {', '.join(own)} of its own, which {dem} does not replace")
    return [band for band in lacking if band in needed]


READERS: dict[str, Reader] = {
    "Landsat": read_landsat,
    "Sentinel-2": read_sentinel2,
    "HLS": read_hls,
    "STAC item": read_stac,
}
"""Kind of product -> its reader."""
