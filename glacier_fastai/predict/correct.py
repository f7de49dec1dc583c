"""Corrections: what a person changed in the outlines of a map, and ground that was checked, as labels to train on."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import shapely
from affine import Affine
from pyproj.exceptions import CRSError
from rasterio.features import rasterize
from scipy.ndimage import binary_dilation

from ..bands import CLASSES, ICE, IGNORE
from ..data.scenes.address import Address, named
from ..data.scenes.opening import HowRead, scene_name
from ..data.scenes.raster import open_raster, parse_crs, reading
from ..data.scenes.scene import Place
from ..data.scenes.units import Scaling
from ..data.sources.labels import label_masks
from ..data.sources.outlines import OutlineFile, open_outlines, polygons_on
from ..data.sources.pixels import ToPixels
from ..data.sources.scene import cut_scenes
from ..data.tiles import TileStore, TileWriter
from ..errors import DataError, did_you_mean, note
from ..files import check_room, file_hash
from ..memory import fits
from .glaciers import stem_of
from .outlines import regions_of
from .source import Grid
from .whole import read_record

__all__ = ["RIM", "correct"]

log = logging.getLogger(__name__)

RIM = 3
"""Pixels around a change that were looked at, too."""
TICKED = ("1", "1.0", "true", "t", "yes", "y")
MOST = 0.5  # share of the mapped ice that is erased, from which that is said


def correct(
    source: str | os.PathLike,  # the scene that was mapped, see `data.scenes.opening.open_scene`; or a tile store
    edited: str | os.PathLike,  # the map's outlines as a person left them: polygons of classes, see `vectors`
    out: str | os.PathLike,  # folder of the store to make
    *,
    checked: str | os.PathLike | None = None,  # polygons of ground where all was looked at
    mapped: str | os.PathLike | None = None,  # the map they were outlines of; default `SCENE_classes.tif` beside them
    class_field: str = "class",  # column of class names or codes
    tile_size: int | None = None,  # of a scene's tiles, pixels; default 128
    **how: Unpack[HowRead],
) -> TileStore:
    """Make a tile store whose labels are what a person corrected.

    >>> import warnings
    >>> import rasterio
    >>> from tempfile import TemporaryDirectory
    >>> from geopandas import GeoDataFrame
    >>> from glacier_fastai.data.sources.synthetic import write_scene
    >>> with TemporaryDirectory() as folder:
    ...     scene, mapped = write_scene(Path(folder) / "scene.tif", size=64)
    ...     with rasterio.open(mapped) as file:
    ...         lake = shapely.box(*file.window_bounds(((8, 12), (20, 24))))
    ...         GeoDataFrame({"class": ["lake"]}, geometry=[lake], crs=file.crs).to_file(f"{folder}/edited.gpkg")
    ...         around = GeoDataFrame(geometry=[shapely.box(*file.bounds)], crs=file.crs)
    ...     around.to_file(f"{folder}/checked.gpkg")
    ...     names = {"edited": f"{folder}/edited.gpkg", "checked": f"{folder}/checked.gpkg", "tile_size": 64}
    ...     with warnings.catch_warnings(action="ignore"):
    ...         store = correct(scene, out=Path(folder) / "corrected", **names)
    >>> store.class_counts().tolist()
    [[4080, 0, 0, 16]]

    Labels stand where somebody looked, that is

    - where the edited polygons differ from the map as it was, and `RIM` pixels around;
    - within the polygons of `checked`; of a file with a column `checked`, those that are ticked.

    There, ground without a polygon is background, and where polygons overlap the one that differs from the map counts.
    Everywhere else a scene has no label; of its tiles, those without any are left out. A store keeps its tiles, and
    there its labels.

    Raises:
        DataError: Anything about the input that cannot be used, or that nothing was corrected.
        OutputError: `out` exists already or cannot be written.
    """
    scene = named(source)
    work = _Corrections.opened(edited, checked, mapped, class_field)
    if isinstance(scene, Path) and (scene / "dataset.json").is_file():
        if given := next((k for k, value in {"tile_size": tile_size, **how}.items() if value), None):
            raise DataError(f"{scene}: a tile store says all of itself; leave out {given}")
        return _correct_store(TileStore(scene), work, out)

    def masks(looked: Sequence[Any], writer: TileWriter) -> Iterator[np.ndarray]:
        (place,) = looked
        yield work.labels(place, scene_name(scene), writer.info["notes"])
        work.finish(writer)

    return cut_scenes([scene], out, masks, {"scenes": [str(scene)]}, tile_size or 128, labelled=True, **how)


def _correct_store(store: TileStore, work: _Corrections, out: str | os.PathLike) -> TileStore:
    """Write a store again with other labels where somebody looked."""
    store = store.base()
    check_room(out, store.images.nbytes + store.masks.nbytes)
    units = (store.units[band] for band in store.bands)
    scaling = [Scaling(*how) for how in zip(store.scale.tolist(), store.offset.tolist(), units, strict=True)]
    made = (store.info.get("source", ""), store.info.get("sensor", ""), {"tiles": str(store.path)}, scaling)
    with TileWriter(out, store.bands, store.size, store.info["dtype"], *made) as writer:
        writer.info["notes"] += store.info.get("notes", [])
        if store.standardised:
            writer.info["standardised"] = True
        masks = dict[int, np.ndarray]()  # of tiles that are corrected
        for scene, place, tiles in _places(store):
            labels = work.labels(place, scene, writer.info["notes"])
            for i, row, col in tiles:
                label = labels[row : row + store.size, col : col + store.size]
                if (label != IGNORE).any():
                    masks[i] = np.where(label != IGNORE, label, store.labels(i))
        work.finish(writer)
        if not masks:
            raise DataError(f"{work.edited.path}: what was corrected lies on no tile of {store.path}")
        log.info(f"{store.path}: {len(masks)} of {len(store)} tiles have new labels")
        keep = ("scene", "row", "col", "crs", "group", "split")
        for i, tile in enumerate(store.table.to_dict("records")):
            store.check(i, "image")
            about = {"transform": [float(v) for v in tile["transform"].split()], **{k: tile[k] for k in keep}}
            writer.add(np.array(store.images[i]), masks.get(i, store.labels(i)), name=tile["id"], **about)
    return TileStore(out)


def _places(store: TileStore) -> Iterator[tuple[str, Grid, list[tuple[int, int, int]]]]:
    """Yield the ground of a store, scene by scene: its name, its grid, and tiles: position, first row and column there.

    Raises:
        DataError: No tile says where it lies.
    """
    rows, found = store.table.to_dict("records"), dict[Any, list[int]]()
    for i, tile in enumerate(rows):
        if tile["crs"] and tile["transform"]:
            origin = _origin(tile, 0, 0)
            lies = (round(v / max(abs(origin.a), abs(origin.b)), 2) for v in (origin.c, origin.f))
            found.setdefault((tile["scene"], tile["crs"], origin.a, origin.b, origin.d, origin.e, *lies), []).append(i)
    if not found:
        raise DataError(f"{store.path}: its tiles do not say where they lie, so no polygon can be laid on them")
    for (scene, text, *_), tiles in found.items():
        try:
            crs = parse_crs(text)
        except CRSError as err:
            raise DataError(f"{store.path}: the coordinate reference system of {scene} cannot be used ({err})") from err
        at = np.array([(rows[i]["row"], rows[i]["col"]) for i in tiles])
        top, left = at.min(0).tolist()
        height, width = (np.ptp(at, axis=0) + store.size).tolist()
        grid = _origin(rows[tiles[0]], top, left)
        place = Grid(Path(f"{store.path}, scene {scene}"), crs, grid, height, width)
        yield scene, place, [(i, r - top, c - left) for i, (r, c) in zip(tiles, at.tolist(), strict=True)]


def _origin(tile: dict[Any, Any], row: int, col: int) -> Affine:
    """Return the geotransform of a tile's scene from a row and a column on."""
    transform = Affine(*map(float, tile["transform"].split()))
    return transform * Affine.translation(col - tile["col"], row - tile["row"])


@dataclass
class _Corrections:
    """The files of a correction, and what has been found in them so far."""

    edited: OutlineFile
    checked: OutlineFile | None
    mapped: Path | Address | None
    places: list[str] = field(default_factory=list)
    maps: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # of pixels
    polygons: int = 0  # that lie on any place
    ticked: int = 0  # of `checked`
    left_out: int = 0  # of it, as they are not ticked

    @classmethod
    def opened(cls, edited: Any, checked: Any, mapped: Any, class_field: str) -> _Corrections:
        """Open the files; raises `DataError`."""
        (file,) = open_outlines([edited], layer="classes")
        if (column := file.column(class_field.lower())) is None:
            held = ", ".join(file.layer.columns) or "none"
            raise DataError(
                f"{edited}: no column {class_field!r}, so what its polygons are is not known; it has {held}"
                f"{did_you_mean(class_field, file.layer.columns)}; edit the layer `classes` of SCENE_outlines.gpkg, "
                "and save all of its columns"
            )
        if not np.isfinite(file.layer.bounds).all(1).any():
            raise DataError(
                f"{edited}: holds no polygon; where nothing is left of the map, draw one of class background over it"
            )
        (area,) = open_outlines([checked], layer="checked") if checked is not None else (None,)
        return cls(OutlineFile(file.layer, None, column), area, None if mapped is None else named(mapped))

    def labels(
        self,
        place: Place,
        name: str,  # of the scene
        notes: list[str],  # see `errors.note`
    ) -> np.ndarray:
        """Return the labels of a place, uint8 `(H, W)`, 255 where nobody looked."""
        shape = place.height, place.width
        fits(8 * shape[0] * shape[1], f"{place.path}: its {shape[0]:,} x {shape[1]:,} px", "cut it into several")
        self.places.append(str(place.path))
        to_pixels = ToPixels(self.edited.layer.crs, place.crs, place.transform, shape, self.edited.path, place.path)
        polygons, codes, _ = polygons_on(self.edited, to_pixels, notes)
        self.polygons += len(polygons)
        base = self._base(place, name, notes)
        drawn, looked = _burned(polygons, codes, shape, base), self._looked(place, notes)
        if base is not None:
            differs = (base != IGNORE) & (drawn != base)
            self._count(base, drawn, differs, notes, place)
            looked |= binary_dilation(differs, iterations=RIM) & (base != IGNORE)
        elif self.checked:
            text = "no map lies beside it, so what was changed outside of the ground that was checked does not count"
            note(f"{self.edited.path}: {text}", notes)
        self.counts["looked at"] += int(looked.sum())
        return np.where(looked, drawn, IGNORE)

    def finish(self, writer: TileWriter) -> None:
        """Say what was corrected; raises `DataError` if nothing was."""
        path, where = self.edited.path, f"{self.places[0]}{' and the others' if len(self.places) > 1 else ''}"
        if self.mapped is not None and not self.maps:
            raise DataError(f"{self.mapped}: the map covers no pixel of {where}; check that both show the same place")
        if not self.polygons:
            raise DataError(f"{path}: no polygon lies on {where}; was another scene edited?")
        if self.checked and not self.ticked:
            what = f"none of its {self.left_out} polygons on {where} is ticked as checked; tick those looked at"
            what = what if self.left_out else f"no polygon lies on {where}, so it says of no ground that it was checked"
            raise DataError(f"{self.checked.path}: {what}")
        if not self.checked and not self.maps:
            file = f"{Path(path).stem.removesuffix('_outlines')}_classes.tif"
            raise DataError(
                f"{path}: its map ({file}) does not lie beside it, so what was changed is not known; name the map, or "
                "the ground that was checked"
            )
        if not self.counts["looked at"]:
            raise DataError(
                f"{path}: on {where} it says what the map says, so nothing was corrected there; edits belong into the "
                "layer `classes`, and where the map is right, name the ground that was checked"
            )
        about = {"edited": path, "checked": self.checked and self.checked.path, "maps": self.maps}
        writer.info["made_by"] |= {**about, "pixels": dict(self.counts)}
        log.info(f"{path}: {', '.join(f'{n:,} pixels {kind}' for kind, n in self.counts.items())}")

    def _looked(self, place: Place, notes: list[str]) -> np.ndarray:
        """Return what lies within polygons of checked ground, bool `(H, W)`."""
        file, shape = self.checked, (place.height, place.width)
        if file is None:
            return np.zeros(shape, bool)
        to_pixels = ToPixels(file.layer.crs, place.crs, place.transform, shape, file.path, place.path)
        column = file.column("checked")
        polygons, _, table = polygons_on(file, to_pixels, notes, [column] if column else [])
        if column:
            ticked = np.array([str(v).strip().lower() in TICKED for v in table[column]], bool)
            self.left_out += int((~ticked).sum())
            polygons = polygons[ticked]
        self.ticked += len(polygons)
        return _cover(polygons, shape)

    def _base(self, place: Place, name: str, notes: list[str]) -> np.ndarray | None:
        """Return the map as its outlines showed it, on the grid of a place, 255 where there is none."""
        path = self.mapped or self._beside(name)
        if path is None:
            return None
        shape = place.height, place.width
        with open_raster(path) as raster, reading(path):
            if raster.crs is None:
                raise DataError(f"{path}: does not say where it lies; give the map as it was made")
            edge = shapely.box(*raster.bounds)
            to_pixels = ToPixels(raster.crs, place.crs, place.transform, shape, path, place.path)
            on = to_pixels(np.array([shapely.segmentize(edge, edge.length / 256)], object))[0]
            if not shapely.intersects(on, shapely.box(0, 0, place.width, place.height)):
                return None  # of a store, it is of another scene
        if str(path) not in self.maps:
            self.maps.append(str(path))
        (base,) = label_masks([path], [place], align=True, note=lambda text: note(text, notes))
        there = np.flatnonzero(np.bincount(base.ravel(), minlength=256))
        if odd := {*there.tolist()} - {*range(len(CLASSES)), IGNORE}:
            raise DataError(f"{path}: holds {min(odd)}, which no map of classes does; give the map as it was made")
        record = read_record(path.with_name(f"{stem_of(path)}_prediction.json")) if isinstance(path, Path) else {}
        sums = record.get("sha256")
        if isinstance(sums, dict) and path.name in sums and file_hash(path) != sums[path.name]:
            text = "was changed since it was made; if after its outlines, that counts as corrected, too"
            note(f"{path}: {text}", notes)
        _compare(record, name, f"{self.edited.path}: edits {path}", notes)
        wanted = record.get("wanted")
        tolerance = wanted.get("simplify") if isinstance(wanted, dict) else None
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < np.inf:
            return base
        with open_raster(path) as raster, reading(path):
            values, t = raster.read(1), raster.transform
        values[values == IGNORE] = 0
        found, codes = regions_of(values, (values > 0).astype(np.uint8), t)
        if not len(found):
            return base
        simple = shapely.coverage_simplify(found, tolerance * abs(t.determinant) ** 0.5)  # as they were written
        shown = _burned(to_pixels(simple), codes, shape, None)
        return np.where(base == IGNORE, IGNORE, shown)

    def _beside(self, name: str) -> Path | None:
        """Return the map that lies beside the edited outlines, of their name or of the scene's, if there is one."""
        own = Path(self.edited.path)
        for stem in (own.stem.removesuffix("_outlines"), name):
            if (path := own.with_name(f"{Path(stem).name}_classes.tif")).is_file():
                return path
        return None

    def _count(self, base: np.ndarray, drawn: np.ndarray, differs: np.ndarray, notes: list[str], place: Place) -> None:
        ice, was = np.isin(drawn, ICE), np.isin(base, ICE)
        kinds = {"added to ice": ice & ~was, "erased from ice": was & ~ice, "of another class": ice == was}
        found = {kind: int((differs & where).sum()) for kind, where in kinds.items()}
        self.counts.update(found)
        if found["erased from ice"] > MOST * was.sum():
            note(
                f"{self.edited.path}: {found['erased from ice'] / was.sum():.0%} of the ice mapped on {place.path} has "
                "no polygon any more, and counts as erased, which is wrong if the file holds a part of the outlines",
                notes,
            )


def _compare(record: dict[str, Any], name: str, what: str, notes: list[str]) -> None:
    """Say that a map is of another scene."""
    parts = record.get("scenes")
    told = [part for part in (record, *(parts if isinstance(parts, list) else ())) if isinstance(part, dict)]
    scenes = [str(part["scene"]) for part in told if part.get("scene")]
    if scenes and name not in {*scenes, *map(scene_name, scenes)}:
        note(f"{what}, a map of {scenes[0]}, not of {name}; what was corrected is taken to hold for that, too", notes)


def _cover(polygons: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return which pixels have their centre in a polygon, bool `(H, W)`."""
    if not len(polygons):
        return np.zeros(shape, bool)
    return rasterize(((p, 1) for p in polygons), out_shape=shape, fill=0, dtype="uint8").astype(bool)


def _burned(
    polygons: np.ndarray,  # in pixels
    codes: np.ndarray,  # their classes
    shape: tuple[int, int],
    base: np.ndarray | None,  # map before they were edited
) -> np.ndarray:
    """Return the classes of polygons, background elsewhere, uint8 `(H, W)`.

    Where some overlap, one that differs from the map counts; of such, and without a map, debris lies over glacier, lake
    over both, and background over all.
    """
    drawn, new = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    for code in (*range(1, len(CLASSES)), 0):
        cover = _cover(polygons[codes == code], shape)
        other = cover if base is None else cover & (base != code)
        drawn[cover & ~new & ~other] = code
        drawn[other] = code
        new |= other
    return drawn
