"""Made-up HKH data in the published formats: slices, splits, slices.geojson with its quirk, statistics, archives."""

import json
import random
import tarfile

import numpy as np

CRS = "urn:ogc:def:crs:EPSG::32645"
LEFT, BOTTOM, PIXEL = 300_000.0, 3_000_000.0, 30.0  # lower left corner of scene 0
STEP = 40_000.0  # from scene to scene eastwards


def scene(rows, cols, size, rng):
    """Return values (H, W, 15) float32 and mask (H, W, 3) uint8 of a scene of rows x cols slices.

    Each slice has patches of its own, of clean ice and debris that share some pixels, and some ice of neither kind; the
    last slice has no ice, the one before it very little. Wedges hold NaN in all channels but elevation and slope, and
    blue misses some more. Slice 1 has little data, but that is ice.
    """
    height, width = (n * (size - 6) + 6 for n in (rows, cols))
    values = rng.uniform(20, 250, (height, width, 15)).astype(np.float32)
    values[..., 10:13] = rng.uniform(-1, 1, (height, width, 3))
    values[..., 13] = rng.uniform(3000, 7000, (height, width))
    values[..., 14] = rng.uniform(0, 60, (height, width))
    mask = np.zeros((height, width, 3), np.uint8)
    q = size // 8
    for n in range(rows * cols):
        y, x = (k * (size - 6) for k in divmod(n, cols))
        tile = mask[y : y + size, x : x + size]
        if n == rows * cols - 1:
            tile[:] = 0
        elif n == rows * cols - 2:
            tile[3 * q : 4 * q, 3 * q : 4 * q, :2] = 1
        else:
            tile[q + 2 : 4 * q, q + 2 : 6 * q, :2] = 1
            tile[4 * q - 2 : 6 * q, q + 2 : 6 * q, 2] = 1
            tile[4 * q : 6 * q, q + 2 : 6 * q, 0] = 1
            tile[6 * q : 7 * q, q + 2 : 2 * q + 2, 0] = 1
        if n == 1:
            values[y : y + size, x : x + size, :13] = np.nan
            values[y + q + 2 : y + 2 * q + 2, x + q : x + 5 * q, :13] = 90
    row, col = np.mgrid[:height, :width]
    values[(row + col // 4) % 11 < 2, :13] = np.nan
    values[(row + col // 4) % 11 == 2, 0] = np.nan
    mask[np.isnan(values[..., 0])] = 0
    return values, mask


def slice_name(s, n, kind):
    return f"slice_{s}_{kind}_{n:03}.npy"


def footprints(s, rows, cols, size):
    """Return the features of a scene as the original code made them: latitudes from the bottom up."""
    step = size - 6
    xs = LEFT + s * STEP + np.linspace(0, PIXEL * (cols * step + 6), cols * step + 6)
    ys = BOTTOM + np.linspace(0, PIXEL * (rows * step + 6), rows * step + 6)
    out = []
    for n in range(rows * cols):
        i, j = divmod(n, cols)
        (x0, x1), (y0, y1) = ((v[k * step], v[(k + 1) * step]) for v, k in ((xs, j), (ys, i)))
        about = {
            "img_source": f"/mnt/blobfuse/img_data/LE07_14{s:04}_20051012.tif",
            "img_slice": f"/mnt/blobfuse/slices/{slice_name(s, n, 'img')}",
            "mask_slice": f"/mnt/blobfuse/slices/{slice_name(s, n, 'mask')}",
        }
        ring = [[x1, y0], [x1, y1], [x0, y1], [x0, y0], [x1, y0]]
        out.append(
            {"type": "Feature", "properties": about, "geometry": {"type": "Polygon", "coordinates": [ring]}},
        )
    return out


def hkh_folder(path, scenes=2, rows=2, cols=3, size=32, seed=0, places=True, splits=True):
    """Write `path`/glacier_data and return it; of each scene, slice 0 is also in train, 2 in dev and 3 in test."""
    rng = np.random.default_rng(seed)
    root = path / "glacier_data"
    (root / "slices").mkdir(parents=True)
    features, tiles = [], {}
    for s in range(scenes):
        values, mask = scene(rows, cols, size, rng)
        for n in range(rows * cols):
            y, x = (k * (size - 6) for k in divmod(n, cols))
            at = (slice(y, y + size), slice(x, x + size))
            tiles[s, n] = values[at], mask[at]
            np.save(root / "slices" / slice_name(s, n, "img"), values[at])
            np.save(root / "slices" / slice_name(s, n, "mask"), mask[at])
        features += footprints(s, rows, cols, size)
    if places:
        table = {"type": "FeatureCollection", "crs": {"type": "name", "properties": {"name": CRS}}}
        (root / "slices.geojson").write_text(json.dumps({**table, "features": features}))
    if splits:
        write_splits(root, tiles)
    return root


def write_splits(root, tiles):
    """Write splits and stats_train.json as the original code did: nodata 0, then z-scores, then float32 on disk."""
    parts = {"train": 0, "dev": 2, "test": 3}
    train = np.stack([image for (_, n), (image, _) in tiles.items() if n == parts["train"]])
    mean, std = np.nanmean(train, (0, 1, 2), dtype=np.float64), np.nanstd(train, (0, 1, 2), dtype=np.float64)
    (root / "stats_train.json").write_text(json.dumps({"means": mean.tolist(), "stds": std.tolist()}))
    for part, number in parts.items():
        (root / "splits" / part).mkdir(parents=True)
        for (s, n), (image, mask) in tiles.items():
            if n == number:
                image = np.nan_to_num(image, nan=0)
                for k in range(15):
                    image[..., k] -= mean[k]
                    image[..., k] /= std[k]
                mask = mask[..., 1:]
                np.save(root / "splits" / part / slice_name(s, n, "img"), image)
                onehot = np.dstack([mask, ~mask.any(2)])
                np.save(root / "splits" / part / slice_name(s, n, "mask"), onehot)


def hkh_archive(root, path, order="mixed"):
    """Pack glacier_data: "images" first and slices.geojson last, "masks" first and it before them, or all "mixed"."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    if order == "mixed":
        random.Random(1).shuffle(files)
    else:
        first = "_img_" if order == "images" else "_mask_"
        files.sort(key=lambda p: (order == "images") if p.suffix == ".geojson" else 0.5 - (first in p.name) / 4)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for file in files:
            tar.add(file, file.relative_to(root.parent).as_posix())
    return path
