"""Made-up mountains and the glaciers that flow down their valleys, for `synthetic`.

Rivers cut the valleys (stream power law), snow above the equilibrium line flows as shallow ice, and streamlines
carry moraines down the ice. Everything is a pure function of its arguments; heights and lengths are in metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage as ndi
from scipy.linalg import solve_banded
from scipy.sparse import csgraph, csr_array

__all__ = [
    "PIXEL",
    "cast_shadow",
    "clear",
    "drainage",
    "flow_ice",
    "fractal",
    "lakes",
    "moraines",
    "mountains",
    "resample",
    "slope_aspect",
    "trace",
]

PIXEL = 30.0
"""Side of a pixel of the finished landscape, m."""

_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def fractal(
    rng: np.random.Generator,
    shape: tuple[int, int],
    longest: float,  # longest wavelength, cells
    steepness: float = 1.9,  # amplitude falls as frequency ** -steepness: larger is smoother
) -> np.ndarray:
    """Return correlated noise of zero mean and unit standard deviation.

    >>> noise = fractal(np.random.default_rng(0), (64, 64), longest=20)
    >>> noise.shape, abs(float(noise.mean())) < 1e-9, round(float(noise.std()), 6)
    ((64, 64), True, 1.0)
    """
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    amplitude = 1 / (frequency**2 + longest**-2.0) ** (steepness / 2)
    amplitude[0, 0] = 0
    out = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * amplitude, shape)
    return out / out.std()


def resample(
    field: np.ndarray,  # (h, w)
    factor: int,  # cells of the result per cell of `field`, along each axis
    warp: Sequence[np.ndarray] | None = None,  # shift of rows and columns, cells of `field`
    order: int = 3,  # order of the spline
) -> np.ndarray:
    """Return `field` on a grid `factor` times finer, optionally warped so that no grid direction shows.

    >>> resample(np.array([[0.0, 4.0]]), 2, order=1)[0]
    array([0., 1., 3., 4.])
    """
    rows, cols = ((np.arange(n * factor) + 0.5) / factor - 0.5 for n in field.shape)
    at = np.stack(np.broadcast_arrays(rows[:, None], cols[None, :]))
    if warp is not None:
        at = at + np.stack(warp)
    return ndi.map_coordinates(field, at, order=order, mode="nearest")


def slope_aspect(
    elevation: np.ndarray,  # (H, W), m
    cell: float = PIXEL,  # side of a cell, m
) -> tuple[np.ndarray, np.ndarray]:
    """Return slope (tangent) and aspect (direction of descent, radians clockwise from north)."""
    south, east = np.gradient(elevation, cell)
    return np.hypot(south, east), np.arctan2(-east, south)


def drainage(
    height: np.ndarray,  # (h, w), m
    outlets: np.ndarray,  # (h, w) bool, cells from which water leaves
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return where each cell drains to, over the lowest pass out of any pit, on its way to an outlet.

    The minimum spanning tree on edge weights ``max(h_i, h_j)`` holds the minimax paths to the border (Barnes et al.
    2014's priority flood, doi 10.1016/j.cageo.2013.04.024, reaches the same), found without a Python loop over cells.

    Returns:
        Receiver of each cell, int64 of shape `(h*w,)`, `h*w` = outside; distance to it in cells; and cells by
        number of steps to the outside, nearest first.
    """
    h, w = height.shape
    n, index, z = h * w, np.arange(h * w).reshape(h, w), height - height.min() + 1.0
    ends = []
    for dr, dc in _NEIGHBOURS:
        a = (slice(0, h - dr), slice(max(0, -dc), w - max(0, dc)))
        b = (slice(dr, h), slice(max(0, dc), w - max(0, -dc)))
        # the small second term sends a cell to its lowest neighbour, for all lower ones have the same maximum
        weight = np.maximum(z[a], z[b]) + 1e-3 * np.minimum(z[a], z[b])
        ends.append((index[a].ravel(), index[b].ravel(), weight.ravel()))
    border = np.flatnonzero(outlets)
    ends.append((border, np.full(border.size, n), z.ravel()[border]))
    i, j, weight = (np.concatenate(parts) for parts in zip(*ends, strict=True))
    tree = csgraph.minimum_spanning_tree(csr_array((weight, (i, j)), shape=(n + 1, n + 1)))
    order, receiver = csgraph.breadth_first_order(tree, n, directed=False)
    receiver = receiver[:n].astype(np.int64)
    # breadth first lists cells by their number of steps; pointer jumping counts the steps
    jump, steps = np.append(receiver, n), np.append(np.ones(n, np.int64), 0)
    while (jump != n).any():
        steps += steps[jump]
        jump = jump[jump]
    cells = order[1:]
    levels = np.split(cells, np.flatnonzero(np.diff(steps[cells])) + 1)
    inner = receiver < n
    distance = np.ones(n)
    diagonal = (np.abs(receiver // w - np.arange(n) // w) == 1) & (np.abs(receiver % w - np.arange(n) % w) == 1)
    distance[diagonal & inner] = np.sqrt(2)
    return receiver, distance, levels


def _incise(height, outlets, uplift, cell: float, steps: int, rise: float, steepness: float) -> np.ndarray:
    """Lift and let rivers cut: dh/dt = U - K A^0.5 S, implicit.

    Braun and Willett 2013, doi 10.1016/j.geomorph.2012.10.008.
    """
    cone = -0.95 * cell * np.array([[2**0.5, 1, 2**0.5], [1, 0, 1], [2**0.5, 1, 2**0.5]])
    lift = np.append((uplift * rise).ravel(), 0.0)
    for _ in range(steps):
        receiver, distance, levels = drainage(height, outlets)
        area = np.full(height.size + 1, cell * cell)
        for level in reversed(levels):
            np.add.at(area, receiver[level], area[level])
        # below about a square kilometre there is no river but a slope, as steep as rock stands
        river = area[:-1] ** 2 / (area[:-1] ** 2 + 1.2e6**2)
        rate = rise / steepness * river * np.sqrt(area[:-1]) / (distance * cell)
        z = np.append(height.ravel(), 0.0)
        for level in levels:
            f = rate[level]
            z[level] = (z[level] + lift[level] + f * z[receiver[level]]) / (1 + f)
        height = z[:-1].reshape(height.shape)
        height = ndi.grey_erosion(height, structure=cone, mode="nearest")  # rock falls from slopes above 43 degrees
    return height


def mountains(
    rng: np.random.Generator,
    cells: int,  # side of the domain in cells of 8 pixels (240 m)
) -> np.ndarray:
    """Return heights on a grid of 30 m, in m above the outlets, of shape `(8 * cells, 8 * cells)`."""
    shape = (cells, cells)
    uplift = np.clip(1 + 0.3 * fractal(rng, shape, 40), 0.35, 1.8)
    steepness = rng.uniform(190, 320)
    height = 250 * (fractal(rng, shape, 40) + 3)
    edge = np.zeros(shape, bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    ways = edge & (fractal(rng, shape, 60, 2.5) > 0.3)  # a few sides are open, so that long valleys form
    ways = ways if ways.any() else edge
    height = _incise(height, ways, uplift, 240.0, 25, 150.0, steepness)

    def finer(field: np.ndarray, strength: float) -> np.ndarray:
        warp = [strength * fractal(rng, tuple(2 * n for n in field.shape), 24, 2.8) for _ in range(2)]
        return resample(field, 2, warp)

    def enlarge(mask: np.ndarray, factor: int) -> np.ndarray:
        grown = resample(mask.astype(np.float64), factor, order=0) > 0
        inner = np.zeros_like(grown)
        inner[1:-1, 1:-1] = True
        return grown & ~inner

    height = _incise(finer(height, 0.9), enlarge(ways, 2), resample(uplift, 2), 120.0, 8, 60.0, steepness)
    # a closing by a flat disc fills the narrow floors of V-shaped valleys: troughs, as glaciers leave them
    trough = ndi.gaussian_filter(ndi.grey_closing(height, footprint=np.ones((5, 5), bool)), 1)
    coarse = 0.35 * height + 0.65 * trough
    fine = _incise(finer(coarse, 0.5), enlarge(ways, 4), resample(uplift, 4), 60.0, 2, 8.0, steepness)
    fine = finer(fine, 0.6)
    steep = np.clip(ndi.gaussian_filter(slope_aspect(fine)[0], 3), 0, 1)
    crags = 1 - np.abs(fractal(rng, fine.shape, 24, 2.2))
    return fine + steep * 14 * crags + 2 * fractal(rng, fine.shape, 30, 1.7)


def flow_ice(
    bed: np.ndarray,  # (h, w), m
    line: np.ndarray,  # (h, w), equilibrium line altitude, m
    cell: float = 120.0,  # side of a cell, m
) -> np.ndarray:
    """Return the thickness in m of ice: snow above the line flows down and melts below it.

    Shallow ice (Glen's n = 3, with sliding as a larger rate factor), implicit in each direction; coarse grid first.
    Made for its looks, not as a glacier model: walls shed snow to their foot and thin ice may gain mass where it is
    cut off at its bed, so glaciers reach further below the line than the balance alone would carry them.
    """
    thickness = np.zeros([n // 2 for n in bed.shape])
    for factor, steps, years in ((2, 150, 4.0), (1, 50, 2.0)):
        if factor == 1:
            thickness, z, ela, dx = np.maximum(resample(thickness, 2, order=1), 0), bed, line, cell
        else:
            z, ela = (f.reshape(f.shape[0] // 2, 2, f.shape[1] // 2, 2).mean((1, 3)) for f in (bed, line))
            dx = 2 * cell
        walls = np.clip((slope_aspect(z, dx)[0] - 0.36) / 0.2, 0, 1)  # snow falls from steep walls to their foot
        caught = (1 - 0.95 * walls) * (1 + 1.5 * ndi.gaussian_filter(walls, 240 / dx))
        for _ in range(steps):
            s = z + thickness
            balance = np.clip(0.006 * (s - ela), -5, 1.5)
            s += years * np.where(balance > 0, balance * caught, balance)
            for axis in (0, 1):
                s = _spread(s, thickness, axis, dx, years)
            thickness = np.maximum(s - z, 0)
            thickness[[0, -1]] = thickness[:, [0, -1]] = 0
    return thickness


def _spread(s: np.ndarray, thickness: np.ndarray, axis: int, dx: float, years: float) -> np.ndarray:
    """One implicit step of the ice surface along one axis: a tridiagonal system over all rows at once."""
    s, h = (np.moveaxis(a, axis, 1) for a in (s, thickness))
    drop = np.diff(s, axis=1)
    source = np.where(drop > 0, h[:, 1:], h[:, :-1])  # ice comes from the higher cell, never from bare rock
    d = np.minimum(4e-4 * source**5 * (drop / dx) ** 2, 1e6) * years / dx**2
    bands = np.zeros((3, *s.shape))
    bands[0, :, 1:] = bands[2, :, :-1] = -d
    bands[1] = 1
    bands[1, :, :-1] += d
    bands[1, :, 1:] += d
    bands = bands.reshape(3, -1)
    return np.moveaxis(solve_banded((1, 1), bands, s.ravel(), check_finite=False).reshape(s.shape), 1, axis)


def trace(
    surface: np.ndarray,  # (H, W), m, smooth
    rows: np.ndarray,  # where streamlines end, pixels
    cols: np.ndarray,
    steps: int,  # number of points upstream
    stride: float,  # pixels between them
):
    """Follow streamlines upstream from the given pixels; yields rows and columns, int64, one pair per step."""
    south, east = np.gradient(surface)
    norm = np.maximum(np.hypot(south, east), 1e-6)
    south, east = stride * south / norm, stride * east / norm
    r, c = rows.astype(np.float64), cols.astype(np.float64)
    h, w = surface.shape
    for _ in range(steps):
        i, j = np.rint(r).astype(np.int64), np.rint(c).astype(np.int64)
        yield i, j
        r = np.clip(r + south[i, j], 0, h - 1)
        c = np.clip(c + east[i, j], 0, w - 1)


def clear(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return `mask` without its parts of up to `pixels` pixels.

    >>> clear(np.array([[True, False, True, True]]), 1)
    array([[False, False,  True,  True]])
    """
    parts, _ = ndi.label(mask)
    return (np.bincount(parts.ravel()) > pixels)[parts] & mask


def moraines(
    rng: np.random.Generator,
    surface: np.ndarray,  # (H, W), m
    ice: np.ndarray,  # (H, W) bool
    above: np.ndarray,  # (H, W), height of the surface above the equilibrium line, m
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return flow stripes, a score that is high where melt has bared much debris, and the dirt on clean ice."""
    shape = surface.shape
    slick = ndi.gaussian_filter(surface, 4)
    rows, cols = np.nonzero(ice)
    fine = ndi.gaussian_filter(fractal(rng, shape, 8, 0.5), 0.9)
    supply = fractal(rng, shape, 90) + 0.6 * fractal(rng, shape, 10)
    melt = np.maximum(-above, 0)
    texture, melted, alive = np.zeros(rows.size), np.zeros(rows.size), np.ones(rows.size, bool)
    source = np.stack([rows, cols]).astype(np.float64)
    for k, (i, j) in enumerate(trace(slick, rows, cols, 90, 1.9)):
        alive &= ice[i, j]
        melted += alive * melt[i, j]
        source[:, alive] = i[alive], j[alive]
        if k < 20:
            texture += fine[i, j]
    stripes, score, jump = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    stripes[rows, cols] = texture / max(texture.std(), 1e-9) if rows.size else 0
    stripes = ndi.gaussian_filter(stripes, 0.6)
    origin = np.zeros((2, *shape))
    origin[:, rows, cols] = source
    # where streamlines from far apart run side by side two glaciers have met: a medial moraine
    for axis in (1, 2):
        step = np.abs(np.diff(origin, axis=axis)).sum(0)
        both = (ice[1:] & ice[:-1]) if axis == 1 else (ice[:, 1:] & ice[:, :-1])
        jump[tuple(slice(0, n) for n in step.shape)] += both * (step > 40)
    jump = ndi.gaussian_filter(np.minimum(jump, 1), 1.3) * 2.5
    side = np.exp(-ndi.distance_transform_edt(ice) / 2.5)
    low = np.clip(-above / 250, 0, 1)
    i, j = source.astype(np.int64)
    score[rows, cols] = melted
    spread = ndi.gaussian_filter(score, 7) / np.maximum(ndi.gaussian_filter(ice * 1.0, 7), 1e-6)
    score[rows, cols] = (0.3 * melted + 0.5 * spread[rows, cols] + 20 * melt[ice]) * np.exp(0.45 * supply[i, j])
    score = ndi.gaussian_filter(score * (1 + 0.9 * side + 1.2 * np.minimum(jump, 1)) * ice, 1.5)
    return stripes, score, np.clip((0.75 * jump + 0.5 * side) * low, 0, 0.85) * ice


def lakes(
    rng: np.random.Generator,
    surface: np.ndarray,  # (H, W), m; levelled in place where a lake lies
    ice: np.ndarray,  # (H, W) bool
    debris: np.ndarray,  # (H, W) bool
    score: np.ndarray,  # (H, W), from `moraines`
) -> np.ndarray:
    """Return the pixels of lakes at glacier fronts and of ponds on debris, bool."""
    lake = np.zeros(ice.shape, bool)
    if not ice.any():
        return lake
    front = np.where(ice, surface, np.inf)
    front = ice & (front == ndi.minimum_filter(front, 61)) & (score > np.quantile(score[ice], 0.75))
    h, w = ice.shape
    row, col = np.ogrid[:h, :w]
    flat = ndi.gaussian_filter(surface, 3)
    edge = ndi.zoom(rng.standard_normal((h // 5, w // 5)), 5, order=3)
    edge = np.pad(edge, ((0, h - edge.shape[0]), (0, w - edge.shape[1])), mode="edge")
    spots = [(r, c, rng.uniform(4, 10.5), 45.0) for r, c in np.argwhere(front) if rng.random() < 0.35]
    ponds = np.argwhere(debris)
    if len(ponds):
        some = rng.integers(0, len(ponds), rng.poisson(len(ponds) / 2500))
        spots += [(*ponds[k], rng.uniform(1.2, 2.6), 60.0) for k in some]
    for r, c, radius, depth in spots:
        away = np.hypot(row - r, col - c) + 0.22 * radius * edge
        near = (away < radius) & (np.abs(flat - flat[r, c]) < depth)
        parts, _ = ndi.label(near)
        near &= parts == parts[r, c]
        near = ndi.binary_fill_holes(ndi.binary_opening(near) if radius > 4 else near)
        # lakes that touch would be one lake at two levels
        if near.any() and not (ndi.binary_dilation(near, np.ones((3, 3))) & lake).any():
            surface[near] = surface[near].min()
            lake |= near
    return lake


def cast_shadow(
    elevation: np.ndarray,  # (H, W), m
    azimuth: float,  # of the sun, degrees clockwise from north
    height: float,  # of the sun above the horizon, degrees
) -> np.ndarray:
    """Return True where mountains hide the sun.

    >>> wall = np.zeros((1, 8))
    >>> wall[0, 4] = 50.0
    >>> np.flatnonzero(cast_shadow(wall, azimuth=90, height=45)[0])  # from the east, so the shadow lies west
    array([3])
    """
    h, w = elevation.shape
    north, east = np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth))
    rise = PIXEL * np.tan(np.radians(height))
    reach = int(np.ptp(elevation) / rise) + 1
    shadow = np.zeros((h, w), bool)
    step = 1
    while step <= min(reach, max(h, w)):
        dr, dc = round(-north * step), round(east * step)
        a = (slice(max(0, -dr), h - max(0, dr)), slice(max(0, -dc), w - max(0, dc)))
        b = (slice(max(0, dr), h - max(0, -dr)), slice(max(0, dc), w - max(0, -dc)))
        if abs(dr) < h and abs(dc) < w:
            shadow[a] |= elevation[b] - rise * np.hypot(dr, dc) > elevation[a]
        step += 1 if step < 20 else 2
    return shadow
