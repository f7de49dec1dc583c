"""Synthetic glacier landscapes seen by two synthetic sensors: for the demo and for tests, never for results.

A landscape (relief, glaciers, debris, lakes) is a pure function of its seed; an observation adds one day's season,
sun, haze and sensor. The two sensors differ in gain, point spread, noise, band response and missing data, so that a
model pretrained on one has something to learn on the other.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage as ndi

from ...bands import IGNORE, Bands
from ...core.tiling import starts
from ...errors import DataError, OutputError, did_you_mean
from ...files import whole_file
from ..tiles import TileStore, TileWriter
from .terrain import PIXEL, cast_shadow, clear, flow_ice, fractal, lakes, moraines, mountains, resample, slope_aspect

__all__ = ["DEFAULT_BANDS", "Landscape", "landscape", "observe", "synthetic_store", "write_scene"]

DEFAULT_BANDS = ("blue", "green", "red", "swir1", "thermal")
SMALLEST = 32
BACKGROUND, GLACIER, DEBRIS, LAKE = range(4)


@dataclass(frozen=True)
class Landscape:
    """A synthetic landscape on pixels of 30 m; every array is `(size, size)`."""

    elevation: np.ndarray  # of the visible surface, m, float32
    classes: np.ndarray  # 0 background, 1 glacier, 2 debris, 3 lake, uint8
    thickness: np.ndarray  # of the ice, m, float32
    above: np.ndarray  # height above the local equilibrium line, m, float32
    stripes: np.ndarray  # texture drawn out along the flow of the ice, about -2 .. 2, float32
    dirt: np.ndarray  # share of rock on the ice: medial and lateral moraines, debris, 0 .. 1, float32
    rock: np.ndarray  # share of dark rock (schist) against pale rock (granite), 0 .. 1, float32
    grain: np.ndarray  # fine texture of the ground, zero mean, unit deviation, float32
    plants: np.ndarray  # share of ground under grass and shrubs, 0 .. 1, float32


def landscape(
    seed: int,  # the same seed, the same landscape
    size: int,  # side in pixels of 30 m, at least 32
) -> Landscape:
    """Make a landscape. Under 192 px it is a window of a larger one, chosen to hold ice and debris where it can.

    >>> made = landscape(seed=1, size=64)
    >>> made.classes.shape, made.classes.dtype, bool((made.thickness[made.classes == 0] == 0).all())
    ((64, 64), dtype('uint8'), True)

    Raises:
        DataError: `size` is too small.
    """
    _seeded(seed)
    if size < SMALLEST:
        raise DataError(f"synthetic landscape of {size} px: too small to hold a glacier; use at least {SMALLEST}")
    rng = np.random.default_rng([seed, 1])
    cells = -(-(max(size, 160) + 128) // 8)
    bed = mountains(rng, cells)
    shape, n = bed.shape, len(bed)
    coarse = bed.reshape(n // 4, 4, n // 4, 4).mean((1, 3))
    _, aspect = slope_aspect(ndi.gaussian_filter(coarse, 2), 120.0)
    inner = (slice(16, -16), slice(16, -16))
    line = np.quantile(coarse[inner], rng.uniform(0.62, 0.91)) - 90 * np.cos(aspect)
    line += 50 * fractal(rng, coarse.shape, 40)
    depth = resample(ndi.gaussian_filter(flow_ice(coarse, line), 0.6), 4)
    line, smooth = resample(line, 4), resample(coarse, 4)
    ice = ndi.gaussian_filter(depth - 0.6 * (bed - smooth), 1.8) > 16
    ice = ~clear(~clear(ice, 120), 40)
    # the ice surface is smooth across the valley, whatever lies under it
    level = ndi.gaussian_filter(ice * (smooth + depth), 4) / np.maximum(ndi.gaussian_filter(ice * 1.0, 4), 1e-6)
    surface = np.where(ice, np.maximum(level, bed + 1), bed)
    above = surface - line
    stripes, score, moraine = moraines(rng, surface, ice, above)
    share = np.clip(0.17 * np.exp(0.45 * rng.standard_normal()), 0.06, 0.4)
    debris = np.zeros(shape, bool)
    if ice.any():
        inside = ice[64:-64, 64:-64]
        debris = ice & (score > np.quantile(score[64:-64, 64:-64][inside] if inside.any() else score[ice], 1 - share))
        debris = ~clear(~clear(debris, 50), 30) & ice
    lake = lakes(rng, surface, ice, debris, score)
    classes = np.select([lake, debris, ice], [LAKE, DEBRIS, GLACIER], BACKGROUND).astype(np.uint8)
    # debris belongs to a glacier: what lost its clean ice is dead ice, and background
    parts, _ = ndi.label(classes == DEBRIS, np.ones((3, 3)))
    beside = np.unique(parts[ndi.binary_dilation(classes == GLACIER, np.ones((3, 3)))])
    classes[(parts > 0) & ~np.isin(parts, beside)] = BACKGROUND
    thickness = np.where((classes == GLACIER) | (classes == DEBRIS), surface - bed, 0)
    at = _window(rng, classes, size)
    height = surface - surface.min() + 2500 + rng.uniform(-300, 900)
    warmth = -(above + 900 + 250 * fractal(rng, shape, 60)) / 350
    plants = 1 / (1 + np.exp(-np.clip(3 * warmth, -30, 30)))
    rock = 0.5 + 0.5 * np.tanh(1.5 * fractal(rng, shape, 150, 2.2) + 0.5 * fractal(rng, shape, 20))
    dirt = np.where(classes == DEBRIS, 1, moraine) * (classes != LAKE)
    grain = fractal(rng, shape, 12, 1.2)
    fields = (height, classes, thickness, above, stripes, dirt, rock, grain, plants)
    return Landscape(*(np.ascontiguousarray(f[at], np.uint8 if f is classes else np.float32) for f in fields))


def _window(rng, classes, size) -> tuple[slice, slice]:
    """Return where a scene is cut from its domain: the middle, or for small ones a place with ice and debris."""
    n = len(classes)
    first = (n - size) // 2
    if size >= 192:
        return slice(first, first + size), slice(first, first + size)
    counts = [np.pad((classes == k).cumsum(0).cumsum(1), ((1, 0), (1, 0))) for k in (GLACIER, DEBRIS)]
    at = np.arange(40, n - size - 39, 4)
    a, b = at[:, None], at[None, :]
    share = [(c[a + size, b + size] - c[a, b + size] - c[a + size, b] + c[a, b]) / size**2 for c in counts]
    bad = np.abs(share[0] - rng.uniform(0.1, 0.45)) + 3 * np.abs(share[1] - rng.uniform(0.02, 0.12))
    i, j = np.unravel_index(bad.argmin(), bad.shape)
    return slice(at[i], at[i] + size), slice(at[j], at[j] + size)


SPECTRAL = ("blue", "green", "red", "nir", "swir1", "swir2")
REFLECTANCE = {
    # typical shapes after Hall et al. 1987 (snow, ice), Casey et al. 2012 (debris) and the USGS spectral library
    "snow": (0.90, 0.90, 0.89, 0.84, 0.11, 0.07),
    "firn": (0.72, 0.72, 0.70, 0.60, 0.06, 0.04),
    "ice": (0.50, 0.51, 0.47, 0.35, 0.03, 0.02),
    "grey ice": (0.26, 0.27, 0.26, 0.20, 0.05, 0.04),
    "debris": (0.135, 0.155, 0.175, 0.205, 0.215, 0.185),
    "granite": (0.165, 0.190, 0.215, 0.250, 0.290, 0.255),
    "schist": (0.095, 0.105, 0.115, 0.140, 0.165, 0.145),
    "plants": (0.040, 0.070, 0.060, 0.300, 0.200, 0.100),
    "water": (0.120, 0.160, 0.125, 0.035, 0.010, 0.006),
}


@dataclass(frozen=True)
class _Sensor:
    dtype: str
    top: int  # largest digital number
    gain: tuple[float, ...]  # digital numbers per unit of reflectance, bands in the order of SPECTRAL
    offset: tuple[float, ...]  # digital number of no light
    thermal: tuple[float, float]  # digital number at 0 degrees Celsius, and per degree
    blur: tuple[float, float]  # point spread, standard deviation in pixels: reflective bands, thermal
    noise: tuple[float, float]  # standard deviation in digital numbers: reflective bands, thermal
    leak: float  # share of each band's response that lies in the next longer one
    scan_gaps: bool  # SLC-off


_SENSORS = {
    "landsat7": _Sensor(
        "uint8", 255, (400, 390, 400, 300, 430, 480), (22, 14, 10, 8, 6, 5), (112.0, 1.5),
        (0.75, 1.2), (1.4, 0.8), 0.12, True,
    ),
    "landsat8": _Sensor(
        "uint16", 65535, (54e3, 56e3, 57e3, 44e3, 15e3, 15e3), (7.4e3, 7.2e3, 7.2e3, 6.6e3, 5e3, 5e3), (18700.0, 330.0),
        (0.45, 1.7), (60.0, 40.0), 0.0, False,
    ),
}  # fmt: skip


def observe(
    scene: Landscape,
    sensor: str = "landsat8",  # "landsat7" or "landsat8"
    bands: Sequence[str] = DEFAULT_BANDS,  # of blue, green, red, nir, swir1, swir2, thermal, elevation, slope
    seed: int = 0,  # of the day: season, sun, haze, noise, missing data
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a sensor sees on one day.

    Elevation is in whole metres and slope in whole degrees (at least 1); with elevation the image of landsat7 is
    uint16, for metres do not fit into 8 bits.

    >>> image, mask, valid = observe(landscape(seed=1, size=64), "landsat8", ["green", "swir1"])
    >>> image.shape, image.dtype, bool((mask[~valid] == 255).all())
    ((2, 64, 64), dtype('uint16'), True)

    Returns:
        Image `(C, H, W)`, 0 in all bands without data, at least 1 in each elsewhere: uint8 (landsat7) or uint16
        (landsat8). Mask `(H, W)` uint8, 255 without data. Valid `(H, W)`, True where there is data.

    Raises:
        DataError: The sensor or a band is not one of these.
    """
    bands = _checked(sensor, bands)
    _seeded(seed)
    spec = _SENSORS[sensor]
    rng = np.random.default_rng([seed, 2, zlib.crc32(sensor.encode())])
    shape = scene.elevation.shape
    sun, height = rng.uniform(115, 165), rng.uniform(40, 66)
    light, cosine = _light(scene, sun, height)
    reflectance, warmth = _surface(scene, rng)
    air = rng.uniform(-2, 9) - 0.0065 * scene.above
    celsius = air + warmth * (0.25 + 0.75 * light * cosine / np.sin(np.radians(height)))
    celsius = np.where(warmth <= 0, np.minimum(celsius, 0), celsius)
    haze = rng.uniform(0.5, 1.6) * np.exp(-(scene.elevation - 3500) / 4000)
    out = np.empty((len(bands), *shape), np.float64)
    slope = None
    for k, band in enumerate(bands):
        if band in ("elevation", "slope"):
            slope = np.degrees(np.arctan(slope_aspect(scene.elevation)[0])) if band == "slope" else slope
            out[k] = scene.elevation if band == "elevation" else slope
            continue
        if band == "thermal":
            value = ndi.gaussian_filter(celsius, spec.blur[1]) * spec.thermal[1] + spec.thermal[0]
            noise = spec.noise[1]
        else:
            b = SPECTRAL.index(band)
            sky = (0.17, 0.12, 0.09, 0.06, 0.03, 0.02)[b]
            path = (0.055, 0.035, 0.022, 0.012, 0.002, 0.001)[b]
            seen = (1 - spec.leak) * reflectance[b] + spec.leak * reflectance[min(b + 1, 5)]
            seen = ndi.gaussian_filter(seen * (light * cosine + sky) + path * haze, spec.blur[0])
            value = seen * spec.gain[b] * rng.uniform(0.94, 1.06) + spec.offset[b]
            noise = spec.noise[0]
        # detectors differ a little from line to line: faint banding beside the white noise
        lines = 0.4 * noise * rng.standard_normal(16)[np.arange(shape[0]) % 16]
        out[k] = value + noise * rng.standard_normal(shape) + lines[:, None]
    valid = _valid(rng, shape, spec.scan_gaps)
    dtype = np.dtype("uint16" if "elevation" in bands else spec.dtype)
    top = np.array([65535 if b == "elevation" else spec.top for b in bands])[:, None, None]
    image = np.where(valid, np.clip(np.rint(out), 1, top), 0).astype(dtype)
    return image, np.where(valid, scene.classes, IGNORE).astype(np.uint8), valid


def _seeded(seed: int) -> None:
    if seed < 0:
        raise DataError(f"seed {seed}: must be 0 or more")


def _checked(sensor: str, bands: Sequence[str]) -> tuple[str, ...]:
    if sensor not in _SENSORS:
        names = " or ".join(_SENSORS)
        raise DataError(f"unknown synthetic sensor {sensor!r}: use {names}{did_you_mean(sensor, _SENSORS)}")
    able = (*SPECTRAL, "thermal", "elevation", "slope")
    for band in (bands := Bands(bands)):
        if band not in able:
            raise DataError(f"no synthetic band {band!r}: use {', '.join(able)}{did_you_mean(band, able)}")
    return bands


def _light(scene: Landscape, sun: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the direct light that arrives (0 in cast shadow) and the cosine of its angle to the surface."""
    slope, aspect = slope_aspect(scene.elevation)
    up, tilt = np.radians(height), np.arctan(slope)
    cosine = np.sin(up) * np.cos(tilt) + np.cos(up) * np.sin(tilt) * np.cos(np.radians(sun) - aspect)
    shadow = cast_shadow(ndi.gaussian_filter(scene.elevation, 1), sun, height)
    return 1 - ndi.gaussian_filter(shadow.astype(np.float64), 0.7), np.clip(cosine, 0, 1)


def _surface(scene: Landscape, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return reflectance `(6, H, W)` with one day's snow, and by how many degrees full sun warms the surface."""
    shape = scene.elevation.shape
    slope, aspect = slope_aspect(ndi.gaussian_filter(scene.elevation, 1.5))
    hollow = ndi.gaussian_filter(scene.elevation, 5) - scene.elevation
    drift = fractal(rng, shape, 30, 1.6)
    ice = (scene.classes == GLACIER) | (scene.classes == DEBRIS)
    start = rng.uniform(-600, 200)  # height of today's snow line above the equilibrium line, m
    lies = scene.above - start + 110 * drift + 9 * np.clip(hollow, -20, 20)
    lies += 110 * np.cos(aspect) * np.minimum(slope, 1)  # north faces keep snow longest
    ground = lies - 700 * np.clip(slope - 0.6, 0, None) - 130
    cover = np.clip(0.5 + np.where(ice, lies + 60, ground) / 130, 0, 1)
    cover[scene.classes == LAKE] = 0
    r = {k: np.array(v)[:, None, None] for k, v in REFLECTANCE.items()}
    texture = 1 + 0.10 * scene.grain
    base = (r["granite"] * (1 - scene.rock) + r["schist"] * scene.rock) * texture
    base = base * (1 - scene.plants) + r["plants"] * scene.plants * (1 + 0.08 * scene.grain)
    stripes = scene.stripes
    age = np.clip(0.42 - scene.above / 1600 + 0.25 * stripes, 0, 1)
    bare = r["ice"] * (1 - age) + r["grey ice"] * age
    stones = 0.6 * r["debris"] + 0.4 * (r["granite"] * (1 - scene.rock) + r["schist"] * scene.rock)
    stones = stones * (1 + 0.08 * stripes + 0.05 * scene.grain)
    bare = bare * (1 - scene.dirt) + stones * scene.dirt
    water = r["water"] * (1 + 0.5 * np.tanh(fractal(rng, shape, 80, 2.5)))
    out = np.where(ice, bare, base)
    out = np.where(scene.classes == LAKE, water, out)
    old = np.clip(0.6 - (scene.above - start) / 700 + 0.25 * drift, 0, 1)
    snow = (r["snow"] * (1 - old) + r["firn"] * old) * (1 + 0.02 * scene.grain + 0.025 * stripes)
    out = out * (1 - cover) + snow * cover
    warm = np.where(ice, 9 * scene.dirt, 17 - 7 * scene.plants + 3 * scene.rock)
    warm = np.where(scene.classes == LAKE, 4, warm) * (1 - cover)
    return out, warm


def _valid(rng: np.random.Generator, shape: tuple[int, int], scan_gaps: bool) -> np.ndarray:
    """Return where there is data: no wedges of a failed scan-line corrector, no land beyond the edge of the swath."""
    row, col = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    valid = np.ones(shape, bool)
    if scan_gaps:
        tilt = np.radians(rng.uniform(7, 11))
        along, across = row * np.cos(tilt) + col * np.sin(tilt), col * np.cos(tilt) - row * np.sin(tilt)
        centre, phase, failed = rng.uniform(-2600, 2600), rng.uniform(0, 33), rng.random() < 0.6
        if failed:
            width = np.clip(np.abs(across - centre) / 3000 * 14 - 1.5, 0, 14)
            valid &= (along + phase) % 33 >= width
    elif rng.random() < 0.15:
        angle = np.radians(rng.uniform(9, 13) + rng.integers(0, 2) * 180)
        beyond = (col - shape[1] / 2) * np.cos(angle) + (row - shape[0] / 2) * np.sin(angle)
        valid &= beyond < rng.uniform(0.15, 0.5) * shape[1]
    return valid


def _scene(sensor: str, bands: Sequence[str], size: int, seed: int, number: int):
    """Return name, image, mask, valid, CRS and transform of one scene; no two share a landscape or a place.

    Seeds have a zone of UTM each, up to 60 of them.
    """
    _seeded(seed)
    state = np.random.SeedSequence([seed, number, zlib.crc32(sensor.encode())]).generate_state(2)
    image, mask, valid = observe(landscape(int(state[0]), size), sensor, bands, int(state[1]))
    step = max(45_000, int(2 * PIXEL * size))
    columns = max(1, 500_000 // step)
    left = 250_000 + number % columns * step
    top = 3_500_000 - number // columns * step + 600_000 * list(_SENSORS).index(sensor)
    place = (PIXEL, 0.0, float(left), 0.0, -PIXEL, float(top))
    return f"{sensor}_{number:03d}", image, mask, valid, f"EPSG:{32601 + (44 + seed) % 60}", place


def synthetic_store(
    path: str | os.PathLike,  # folder to make; must not exist
    sensor: str = "landsat8",  # "landsat7" or "landsat8"
    *,
    n_scenes: int = 8,  # landscapes, each seen once
    tile_size: int = 128,  # side of a tile, pixels
    scene_size: int = 512,  # side of a scene, pixels, at least `tile_size`
    bands: Sequence[str] = DEFAULT_BANDS,  # see `observe`
    seed: int = 0,  # other seeds, other landscapes
) -> TileStore:
    """Write a tile store of synthetic scenes; the tiles of a scene are one group.

    Raises:
        DataError: A sensor, band or size cannot be used.
        OutputError: `path` exists.
    """
    bands = _checked(sensor, bands)
    if n_scenes < 1:
        raise DataError(f"n_scenes {n_scenes}: make at least 1")
    corners = starts(scene_size, tile_size)
    dtype = "uint16" if "elevation" in bands else _SENSORS[sensor].dtype
    made = {"function": "synthetic_store", "n_scenes": n_scenes, "scene_size": scene_size, "seed": seed}
    with TileWriter(path, bands, tile_size, dtype, source="synthetic", sensor=sensor, made_by=made) as writer:
        for number in range(n_scenes):
            name, image, mask, valid, crs, (a, _, x, _, e, y) = _scene(sensor, bands, scene_size, seed, number)
            for row in corners:
                for col in corners:
                    at = (slice(row, row + tile_size), slice(col, col + tile_size))
                    place = (a, 0.0, x + a * col, 0.0, e, y + e * row)
                    where = {"scene": name, "group": name, "row": row, "col": col, "crs": crs, "transform": place}
                    writer.add(image[:, *at], mask[at], valid=valid[at], **where)
    return TileStore(path)


def write_scene(
    path: str | os.PathLike,  # GeoTIFF to write, for example "scene.tif"; the labels go to "scene_label.tif"
    sensor: str = "landsat8",  # "landsat7" or "landsat8"
    *,
    size: int = 512,  # side, pixels
    bands: Sequence[str] = DEFAULT_BANDS,  # see `observe`
    seed: int = 0,  # of the series of scenes
    number: int = 0,  # which scene of the series; `synthetic_store` makes the first `n_scenes`
) -> tuple[Path, Path]:
    """Write one synthetic scene as GeoTIFF with band names, CRS and nodata 0, and its labels (nodata 255) beside it.

    Returns:
        Paths of the image and of the labels.

    Raises:
        DataError: A sensor, band or size cannot be used.
        OutputError: The folder of `path` does not exist, or a file cannot be written.
    """
    import rasterio
    from rasterio.transform import Affine

    path = Path(path)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: no folder {path.parent}; make it first")
    label = path.with_name(f"{path.stem}_label{path.suffix}")
    bands = _checked(sensor, bands)
    _, image, mask, _, crs, place = _scene(sensor, bands, size, seed, number)
    jobs = ((label, mask[None], ("class",), IGNORE), (path, image, bands, 0))
    for target, values, names, nodata in jobs:
        profile = {"driver": "GTiff", "compress": "deflate", "crs": crs, "transform": Affine(*place), "nodata": nodata}
        shape = {"count": len(values), "height": size, "width": size, "dtype": values.dtype.name}
        with whole_file(target) as out, rasterio.open(out, "w", **profile, **shape) as raster:
            raster.write(values)
            raster.descriptions = tuple(names)
    return path, label
