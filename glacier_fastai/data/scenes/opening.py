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
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypedDict, Unpack

from ...bands import Bands
from ...errors import DataError, did_you_mean
from .address import Address, named
from .geotiff import SceneRaster
from .masks import Masked, check_keep
from .names import canonical_sensor, name_bands
from .product import Folder, Links, Part, Product
from .raster import local_file
from .scene import Scene, on_one_grid
from .stac import read_stac
from .units import Given, by_band
from .web import is_json

__all__ = ["HowRead", "Reader", "open_scene", "scene_name"]

GROUP = "glacier_fastai.scenes"
NO_RASTER = (".json", ".xml", ".txt", ".tar", ".tgz", ".tar.gz", ".zip")  # how metadata and archives end
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
        flags = []
        if isinstance(bands, Mapping) or not _is_raster(path):
            folder = Links(path, not isinstance(bands, Mapping)) if isinstance(path, Address) else _listed(path)
            undo.callback(folder.close)
            if isinstance(bands, Mapping):
                product = _by_hand(folder, bands, how.get("sensor"))
            else:
                product = _product(folder)
                if given := next((k for k in ("bands", "sensor", "scale", "offset") if how.get(k)), None):
                    raise DataError(f"{path}: its metadata say all of its bands; leave out {given}")
            parts = _open_parts(folder, product, wanted, how)
            for part in parts:
                undo.callback(part.close)
            scene = on_one_grid(path, parts, resolution or pixel_size if _differ(parts) else resolution)
            scene.date, scene.sensor = product.date, product.sensor
            scene.notes += product.notes
            scene.also_close, scene.unpacked_from = [*scene.also_close, folder.close], folder.archive
            flags = [(folder.local(f.file), f) for f in product.flags if not f.of or f.of in scene.bands]
        else:
            part = SceneRaster(path, bands, how.get("sensor"), scale=how.get("scale"), offset=how.get("offset"))
            undo.callback(part.close)
            if isinstance(path, Address) and wanted is not None:
                part.leave_out_others(Bands(wanted).made_of(part.bands))
            scene = on_one_grid(path, [part], resolution)
        if flags or own is not None:
            scene = Masked(scene, flags, keep, buffer, None if own is None else named(own))
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
    for end in (*NO_RASTER, ".safe"):
        if name.lower().endswith(end):
            return re.sub("_MTL$", "", name[: -len(end)])
    return name if path.is_dir() else path.stem


def _is_raster(path: Path | Address) -> bool:
    if isinstance(path, Address):
        return not is_json(path)
    return path.is_file() and not path.name.lower().endswith(NO_RASTER)


def _listed(path: Path) -> Folder:
    if not path.is_dir():
        local_file(path)
    return Folder(path)


def _product(folder: Folder) -> Product:
    """Return the product that is in a folder, found by the readers built in, then by those of plug-ins."""
    if isinstance(folder, Links):
        if product := read_stac(folder):
            return product
        raise DataError(f"{folder.path}: no STAC item, and no raster; products are read from this disk")
    plug_ins, broken = _plug_ins()
    for read in (*READERS.values(), *plug_ins.values()):
        if product := read(folder):
            return product
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
        parts[band] = Part(file)
    return Product(parts, sensor=canonical_sensor(sensor) if sensor else None)


def _open_parts(folder: Folder, product: Product, wanted: Collection[str] | None, how: HowRead) -> list[Scene]:
    """Open the files of the bands wanted; of all bands, where some that are wanted are not there."""
    bands = [*product.bands]
    if wanted is not None:
        needed = Bands(wanted).made_of(bands)
        bands = [band for band in bands if band in needed] if {*needed} <= {*bands} else bands
    files: dict[str, dict[int, str]] = {}
    for band in bands:
        files.setdefault(product.bands[band].file, {})[product.bands[band].band] = band
    opened: list[Scene] = []
    with ExitStack() as undo:
        for file, names in files.items():
            parts = [product.bands[b] for b in names.values()]
            said = {b: (part.scale, part.offset) for b, part in zip(names.values(), parts, strict=True)}
            scale = {b: v for b, (v, _) in said.items() if v is not None} or _of_band(how.get("scale"), bands, names)
            offset = {b: v for b, (_, v) in said.items() if v is not None} or _of_band(how.get("offset"), bands, names)
            own = not any(scaling != (None, None) for scaling in said.values())
            opened.append(SceneRaster(folder.local(file), names, scale=scale, offset=offset, own_scaling=own))
            undo.callback(opened[-1].close)
        undo.pop_all()
    return opened


def _of_band(given: Given, bands: Sequence[str], names: Mapping[int, str]) -> Given:
    """Return scale or offset of a file's bands, as `units.by_band` takes it for all bands."""
    if given is None:
        return None
    values = dict(
        zip(bands, by_band(given, "scale or offset", bands, range(1, len(bands) + 1), len(bands)), strict=True)
    )
    return {band: value for band in names.values() if (value := values[band]) is not None} or None


def _differ(parts: Sequence[Scene]) -> bool:
    sides = [abs(part.transform.determinant) for part in parts]
    return max(sides) > 1.0001 * min(sides)


READERS: dict[str, Reader] = {"STAC item": read_stac}
"""Kind of product -> its reader."""
