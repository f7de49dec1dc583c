"""Glaciers of a map as an inventory: polygons in longitude and latitude, with the attributes of RGI 7 or of GLIMS.

Sources: the RGI 7.0 user guide (doi 10.5067/f6jmovy5navz), and what NSIDC asks of those who give data to GLIMS
(nsidc.org/glims/information-glims-data-providers): WGS 84, rocks as holes, debris and lakes as polygons of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import geopandas
import numpy as np
import pandas as pd
import rasterio
import shapely
from numpy.typing import ArrayLike
from rasterio.features import shapes

from ..bands import CLASSES
from ..data.sources.pixels import make_valid, unwrap
from ..data.sources.vectors import open_vector
from ..errors import DataError, note
from .glacier_sums import ENOUGH

__all__ = ["SCHEMAS", "Format", "check_inventory", "glims_ids", "inventory_of"]

Format = Literal["rgi7", "glims"]

GLIMS_ID = r"G\d{6}E\d{5}[NS]"
DAY = r"\d{4}-\d\d-\d\dT00:00:00"


class Field(NamedTuple):
    """A column of an inventory."""

    kind: type  # str, int or float
    allowed: Any = None  # of a text a regular expression, of a number its bounds
    void: bool = False  # may be empty


NUMBER, SHARE = (0.0, np.inf), (0.0, 1.0)
HEIGHT = Field(float, (-500, 9000), True)
SCHEMAS: dict[str, dict[str, Field]] = {
    "rgi7": {
        "rgi_id": Field(str, r"\S.*", True),
        "o1region": Field(str, r"\d\d", True),
        "glims_id": Field(str, GLIMS_ID),
        "src_date": Field(str, DAY),
        "cenlon": Field(float, (-180, 180)),
        "cenlat": Field(float, (-90, 90)),
        "utm_zone": Field(int, (1, 60)),
        "area_km2": Field(float, NUMBER),
        "area_unc_km2": Field(float, NUMBER),
        "debris_share": Field(float, SHARE),
        "glac_name": Field(str, None, True),
        "analyst": Field(str, r"\S.*"),
        "zmin_m": HEIGHT,
        "zmed_m": HEIGHT,
        "zmax_m": HEIGHT,
        "slope_deg": Field(float, (0, 90), True),
        "aspect_deg": Field(float, (0, 360), True),
    },
    "glims": {
        "line_type": Field(str, "glac_bound|debris_cov|supra_lake|pro_lake"),
        "anlys_id": Field(int, (1, np.inf)),
        "glac_id": Field(str, GLIMS_ID),
        "local_id": Field(str, None, True),
        "anlys_time": Field(str, DAY),
        "src_date": Field(str, DAY),
        "glac_name": Field(str, None, True),
        "glac_stat": Field(str, "exists"),
        "rec_status": Field(str, "okay"),
        "analysts": Field(str, r"\S.*"),
        "proc_desc": Field(str, r"\S.*"),
        "area": Field(float, NUMBER),
        "area_unc": Field(float, NUMBER, True),
        "cenlon": Field(float, (-180, 180)),
        "cenlat": Field(float, (-90, 90)),
        "loc_unc_x": Field(float, NUMBER),
        "loc_unc_y": Field(float, NUMBER),
        "min_elev": HEIGHT,
        "max_elev": HEIGHT,
    },
}
"""Columns of each format, in their order. Areas in km2, heights and `loc_unc` in metres, `aspect_deg` from north."""

NEAR = 1e-2  # share by which an area may differ from that of its polygon


def inventory_of(
    form: Format,
    table: geopandas.GeoDataFrame,  # as in `SCENE_glaciers.gpkg`
    classes: rasterio.DatasetReader,  # the map they are of
    reach: float,  # how far from a glacier a lake is its own, units of the map
    pixel: float,  # side of a pixel, metres
    analyst: str,  # who answers for it
    notes: list[str],  # see `errors.note`
) -> geopandas.GeoDataFrame:
    """Return the glaciers of a table as an inventory has them, in longitude and latitude.

    Glaciers that were not wholly seen are left out, which is noted: their outlines would end where the scene does.
    `glac_id` is that of the inventory where it is one of GLIMS, else made of a place within the glacier, as GLIMS makes
    them. In GLIMS's format debris and lakes have rows of their own, a lake within a glacier's outer ring is
    `supra_lake`, one by its side `pro_lake`.

    Raises:
        DataError: The analyst or the date of the scene is not known.
    """
    if not analyst.strip():
        raise DataError("an inventory names its analyst; give the name")
    day = str(table["date"].iloc[0]) if len(table) else ""
    if len(day) < 10:
        raise DataError("an inventory needs the date of its scene; give it")
    ice = table[table.geometry.notna()]
    whole = ~ice["cut"] & ~(ice["share_seen"] < ENOUGH)
    if (~whole).any():
        note(f"{int((~whole).sum())} glaciers are cut or not wholly seen, and left out of the inventory", notes)
    ice = ice[whole].reset_index(drop=True)
    out = {"rgi7": _rgi7, "glims": _glims}[form](_described(ice, day, analyst), classes, reach, pixel)
    columns = SCHEMAS[form]
    for name, field in columns.items():
        if name not in out:
            out[name] = pd.Series([None] * len(out), dtype="str" if field.kind is str else "float64")
    return out[[*columns, "geometry"]]


def _described(ice: geopandas.GeoDataFrame, day: str, analyst: str) -> geopandas.GeoDataFrame:
    """Add what both formats tell of a glacier."""
    lon, lat = _places(ice.geometry)
    interval = ((ice["area_high_km2"] - ice["area_low_km2"]) / 2).fillna(ice["buffer_km2"])
    ids = glims_ids(lon, lat, ice["glims_id"].astype(str).tolist())
    return ice.assign(cenlon=lon, cenlat=lat, unc=interval, src_date=f"{day}T00:00:00", glims_id=ids, analyst=analyst)


def _places(polygons: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return longitude and latitude of a place within each polygon."""
    places = geopandas.GeoSeries(polygons.representative_point(), crs=polygons.crs).to_crs("EPSG:4326")
    return places.x.round(6).to_numpy(), places.y.round(6).to_numpy()


def glims_ids(
    lon: ArrayLike,  # (n,) degrees, of a place in each glacier
    lat: ArrayLike,
    known: Sequence[str] | None = None,  # those that they have; what is no id of GLIMS does not count
) -> list[str]:
    """Return ids of glaciers as GLIMS makes them, of thousandths of degrees, each once.

    >>> glims_ids([-73.1236, -73.1237], [-46.6473, -46.6474])
    ['G286876E46647S', 'G286877E46647S']
    """
    ids = dict[str, None]()
    lon, lat = np.asarray(lon), np.asarray(lat)
    for own, x, y in zip([""] * len(lon) if known is None else known, lon, lat, strict=True):
        wanted, step = own if re.fullmatch(GLIMS_ID, own) else _glims_id(x, y), 0
        while wanted in ids:  # within 100 m of another
            step += 1
            wanted = _glims_id(x + step / 1000, y)
        ids[wanted] = None
    return list(ids)


def _glims_id(lon: float, lat: float) -> str:
    return f"G{round(lon % 360 * 1000) % 360_000:06d}E{round(abs(lat) * 1000):05d}{'S' if lat < 0 else 'N'}"


def _rgi7(ice: geopandas.GeoDataFrame, classes: Any, reach: float, pixel: float) -> geopandas.GeoDataFrame:
    region = ice["id"].str.extract(r"^RGI(?:\d\d-|2000-v7\.0-[GC]-)(\d\d)", expand=False)
    zone = ((ice["cenlon"] + 180) // 6 % 60 + 1).astype(int)
    named = ice.rename(columns={"id": "rgi_id", "name": "glac_name", "unc": "area_unc_km2"})
    return _in_degrees(named.assign(o1region=region.fillna(""), utm_zone=zone))


def _glims(ice: geopandas.GeoDataFrame, classes: Any, reach: float, pixel: float) -> geopandas.GeoDataFrame:
    names = {"id": "local_id", "glims_id": "glac_id", "name": "glac_name", "analyst": "analysts", "area_km2": "area"}
    names |= {"unc": "area_unc", "zmin_m": "min_elev", "zmax_m": "max_elev"}
    ice = ice.rename(columns=names).assign(line_type="glac_bound", anlys_id=np.arange(1, len(ice) + 1))
    rows = [ice]
    for kind, of, polygons in _features(ice.geometry.to_numpy(), classes, reach):
        area = geopandas.GeoSeries(polygons, crs=ice.crs)
        part = ice.iloc[of].assign(line_type=kind, area_unc=np.nan, min_elev=np.nan, max_elev=np.nan)
        part = part.set_geometry(area.set_axis(part.index))
        part["cenlon"], part["cenlat"] = _places(part.geometry)
        rows.append(part)
    out = _in_degrees(geopandas.GeoDataFrame(pd.concat(rows, ignore_index=True), crs=ice.crs))
    extra = out["line_type"] != "glac_bound"
    out.loc[extra, "area"] = _km2(out.geometry[extra])
    today = f"{date.today()}T00:00:00"
    text = "mapped by glacier_fastai, ice given to glaciers by " + ice["inventory"].iloc[:1].str.cat()
    return out.assign(
        anlys_time=today,
        glac_stat="exists",
        rec_status="okay",
        proc_desc=text,
        loc_unc_x=pixel / 2,
        loc_unc_y=pixel / 2,
    )


def _features(glaciers: np.ndarray, classes: Any, reach: float) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield what has rows of its own in GLIMS: line type, positions of the glaciers, polygons."""
    layer = rasterio.band(classes, 1)
    found: dict[int, list[Any]] = {CLASSES.index("debris"): [], CLASSES.index("lake"): []}
    for polygon, code in shapes(layer, layer):
        if int(code) in found:
            found[int(code)].append(shapely.geometry.shape(polygon))
    debris, lakes = (np.array(polygons, object) for polygons in found.values())
    tree = shapely.STRtree(glaciers)
    part, of = tree.query(debris, predicate="intersects")
    covered = shapely.intersection(debris[part], glaciers[of])
    every = np.array([_polygons(shapely.get_parts(covered[of == k])) for k in np.unique(of)], object)
    yield "debris_cov", np.unique(of)[shapely.area(every) > 0], every[shapely.area(every) > 0]
    if not len(lakes) or not len(glaciers):
        return
    near, of = tree.query_nearest(lakes, max_distance=reach, all_matches=False)
    outer = np.array([_polygons(shapely.polygons(shapely.get_exterior_ring(shapely.get_parts(g)))) for g in glaciers])
    within = shapely.covers(outer[of], lakes[near])
    for kind, chosen in (("supra_lake", within), ("pro_lake", ~within)):
        yield kind, of[chosen], lakes[near[chosen]]


def _polygons(parts: np.ndarray) -> Any:
    """Return polygons that may touch as one multipolygon."""
    parts = shapely.get_parts(parts)
    return make_valid(np.array([shapely.MultiPolygon(list(parts[shapely.area(parts) > 0]))], object))[0]


def _in_degrees(table: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Bring polygons to longitude and latitude; those across 180 degrees are cut there."""
    moved = table.to_crs("EPSG:4326")
    polygons, _ = unwrap(moved.geometry.to_numpy().astype(object), 360.0)
    left, _, right, _ = shapely.bounds(polygons).T if len(polygons) else np.empty((4, 0))
    for at in np.flatnonzero((left < -180) | (right > 180)):
        parts = []
        for turn in (-360, 0, 360):
            shifted = shapely.transform(polygons[at], lambda xy, turn=turn: xy + (turn, 0))
            parts.append(shapely.intersection(shifted, shapely.box(-180, -90, 180, 90)))
        polygons[at] = shapely.union_all(parts)
    broken = ~shapely.is_valid(polygons)  # by rounding
    polygons[broken] = make_valid(polygons[broken])
    return moved.set_geometry([_polygons(np.array([p], object)) for p in polygons], crs="EPSG:4326")


def _km2(polygons: Any) -> np.ndarray:
    return polygons.to_crs("EPSG:6933").area.to_numpy() / 1e6  # equal-area, of the whole Earth


def check_inventory(
    path: str | Path,  # file of polygons
    form: Format,
) -> int:
    """Return how many rows an inventory has; raises `DataError` if it is not as `SCHEMAS` says.

    Geometries must be valid polygons within longitude and latitude, an id belong to one glacier, and areas be those of
    the polygons.
    """
    layer = open_vector(path)
    table = layer.read(np.arange(len(layer.bounds)), layer.columns)

    def wrong(what: str) -> DataError:
        return DataError(f"{path}: no inventory in the format {form}: {what}")

    if layer.crs.to_epsg() != 4326:
        raise wrong(f"it is in {layer.crs.name}, not in WGS 84")
    for name, field in SCHEMAS[form].items():
        if name not in table:
            raise wrong(f"no column {name}")
        values = table[name]
        void = values.isna() | (values.astype(str) == "")
        if void.any() and not field.void:
            raise wrong(f"{name} is empty in row {table.index[void][0]}")
        known = values[~void]
        if field.kind is str:
            fits = known.map(lambda v, form=field.allowed: form is None or bool(re.fullmatch(form, str(v))))
        else:
            numbers = pd.to_numeric(known, errors="coerce")
            low, high = field.allowed
            fits = (numbers >= low) & (numbers <= high) & ((field.kind is float) | (numbers % 1 == 0))
        if not fits.all():
            value = known[~fits].iloc[0]
            raise wrong(f"{name} is {repr(value) if isinstance(value, str) else value} in row {known.index[~fits][0]}")
    polygons = table.geometry
    if polygons.isna().any() or not set(polygons.geom_type) <= {"Polygon", "MultiPolygon"}:
        raise wrong("a geometry is no polygon")
    if not polygons.is_valid.all():
        raise wrong(f"the polygon of row {polygons.index[~polygons.is_valid][0]} crosses or touches itself")
    glaciers = table if form == "rgi7" else table[table["line_type"] == "glac_bound"]
    ids = glaciers["glims_id" if form == "rgi7" else "glac_id"]
    if ids.duplicated().any():
        raise wrong(f"{ids[ids.duplicated()].iloc[0]} occurs twice")
    if form == "glims" and not set(table["glac_id"]) <= set(ids):
        raise wrong("a lake or debris belongs to no glacier in it")
    area, drawn = glaciers["area_km2" if form == "rgi7" else "area"].to_numpy(float), _km2(glaciers.geometry)
    if (off := abs(area - drawn) > NEAR * np.maximum(area, drawn)).any():
        at = int(np.flatnonzero(off)[0])
        raise wrong(f"the area of {ids.iloc[at]} is {area[at]:g} km2, and that of its polygon {drawn[at]:g}")
    return len(table)
