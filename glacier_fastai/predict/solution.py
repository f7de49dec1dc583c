"""Glacier maps of GlacierHack 2025 tiles: the `solution.py` of a submission, beside its `model.pth`.

Runs on its own: Python 3.9, torch 2.0, numpy, and one of tifffile, cv2 and PIL. Two ways to call it:

- `maskgeration(imagepath, out_dir)` writes one .tif per file of Band1, and so do
  `python solution.py --data DIR --out DIR` and `python solution.py --imagepath DIR --output DIR`;
- `maskgeration(imagepath, "model.pth")` returns `{tile id: uint8 (H, W)}` and writes nothing.

`imagepath` maps "Band1" to "Band5" to folders; files belong together by the tile id in their names. Maps hold 0
background, 85 glacier, 170 debris, 255 lake, and 0 where there is no data: where all five bands are 0, or one is NaN,
infinite or what its file declares as nodata.

All models see the tile as it is, then in its other views and scales, one round after the other, until the rounds or the
seconds per tile (of model.pth, or GLACIER_SECONDS_PER_TILE; 0 = no limit) are spent. Weighted probabilities are summed
in that order in float32, and divided by the sum of the weights.
"""

# ruff: noqa: B905  zip has no strict in Python 3.9

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

__all__ = ["SubmissionError", "main", "maskgeneration", "maskgeration"]

FORMAT, VERSION = "glacier_fastai submission", 1
BANDS = {"Band1": "blue", "Band2": "green", "Band3": "red", "Band4": "swir1", "Band5": "thermal"}
CODES = np.array([0, 85, 170, 255], np.uint8)  # of background, glacier, debris, lake
K, IGNORE = 4, 255
LIMIT = "GLACIER_SECONDS_PER_TILE"


class SubmissionError(ValueError):
    """Something that cannot be used, in one line."""


# Interfaces


def maskgeration(
    imagepath,  # "Band1" to "Band5" -> folder
    target,  # folder to write to, or the model.pth to use
):
    """Map all tiles: return `{tile id: codes (H, W)}` if `target` is a model, else write them to the folder `target`.

    Raises:
        SubmissionError: Files, folders or a model that cannot be used. Files written before are whole.
    """
    if str(target).lower().endswith(".pth") or os.path.isfile(target):
        tiles, submission = _tiles(imagepath), _Submission(target)
        return {tile: submission.codes(files) for tile, files in tiles.items()}
    tiles, submission = _tiles(imagepath), _Submission(Path(__file__).with_name("model.pth"))
    out = Path(target)
    if out.resolve() in {f.parent.resolve() for files in tiles.values() for f in files}:
        raise SubmissionError(f"{out}: holds the tiles, which the maps would replace; write to another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for files in tiles.values():
            _write(out / files[0].name, submission.codes(files))
    except OSError as err:
        raise SubmissionError(f"{out}: cannot be written ({err.strerror or err}); choose another folder") from err


maskgeneration = maskgeration


def main(arguments=None):
    """Run the command line; return 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(description="Map glaciers on all tiles of a folder.")
    parser.add_argument("--data", "--imagepath", required=True, metavar="DIR", help="folder that holds Band1 .. Band5")
    parser.add_argument("--masks", metavar="DIR", help="not used")
    parser.add_argument("--out", "--output", required=True, metavar="DIR", help="folder to write the maps to")
    args = parser.parse_args(arguments)
    try:
        if not os.path.isdir(args.data):
            raise SubmissionError(f"{args.data}: no such folder")
        maskgeration({f.name: f for f in Path(args.data).iterdir() if f.is_dir()}, args.out)
    except SubmissionError as err:
        print(f"solution.py: {err}", file=sys.stderr)
        return 2
    return 0


# Files


def _tiles(imagepath):
    """Return the files of each tile, in the order of `BANDS`."""
    folders = {str(name).lower(): Path(folder) for name, folder in imagepath.items()}
    bands = []
    for name in BANDS:
        if name.lower() not in folders:
            raise SubmissionError(
                f"no {name} among {', '.join(sorted(map(str, imagepath))) or 'no folders'}; all five are needed"
            )
        bands.append(_by_tile(folders[name.lower()]))
    known = {tile: path for files in reversed(bands) for tile, path in files.items()}
    for files in bands:
        for tile in sorted(known.keys() - files.keys()):
            folder = next(iter(files.values())).parent
            raise SubmissionError(f"{folder}: no file of tile {tile} ({known[tile]}); add it or remove the tile")
    return {tile: [files[tile] for files in bands] for tile in sorted(known)}


def _by_tile(folder):
    try:
        paths = sorted(f for f in folder.iterdir() if f.name.lower().endswith((".tif", ".tiff")) and f.name[0] != ".")
    except OSError as err:
        raise SubmissionError(f"{folder}: cannot be read ({err.strerror})") from err
    out = {}
    for path in paths:
        tile = _tile_id(path)
        if tile in out:
            raise SubmissionError(f"{path}: tile {tile} is also in {out[tile].name}; keep one of them")
        out[tile] = path
    if not out:
        raise SubmissionError(f"{folder}: no .tif in it")
    return out


def _tile_id(path):
    """Return "001" of "img001.tif", else "02_07" of "B2_B2_masked_02_07.tif"; the last one in the name counts."""
    found = re.findall(r"img(\d+)", path.stem, re.ASCII | re.IGNORECASE)
    found = found or re.findall(r"(?<!\d)(?=(\d{2}_\d{2})(?!\d))", path.stem, re.ASCII)
    if not found:
        raise SubmissionError(
            f"{path}: no tile id in its name; name it like img001.tif or B2_02_07.tif, or move it away"
        )
    return found[-1]


def _read_tile(files):
    """Return values (5, H, W) float32, NaN where a band is not finite or declared nodata, or where all bands are 0."""
    values, declared = zip(*map(_read, files))
    for path, band in zip(files, values):
        if band.ndim != 2 or band.shape != values[0].shape:
            shape, wanted = (" x ".join(map(str, s)) for s in (band.shape, values[0].shape[:2]))
            raise SubmissionError(f"{path}: {shape} px; wanted one band, of {wanted} px as in Band1")
    image = np.stack(values).astype(np.float32)
    known = np.isfinite(image).all(0) & (image != 0).any(0)
    for band, nodata in zip(values, declared):
        if nodata is not None:
            known &= band != nodata
    image[:, ~known] = np.nan
    return image


def _read(path):
    """Return pixels and declared nodata (or None), by the first reader that can: tifffile lacks some compressions."""
    said = []
    for reader in (_by_tifffile, _by_pillow, _by_cv2):  # the last one knows nothing of nodata
        try:
            return reader(str(path))
        except Exception as err:  # whatever this one cannot do, the next one may
            said.append(f"{reader.__name__[4:]}: {' '.join(str(err).split())}")
    raise SubmissionError(f"{path}: cannot be read ({'; '.join(said)[:300]})")


def _by_tifffile(path):
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        tag = page.tags.get(42113)  # GDAL_NODATA
        return page.asarray(), _number(tag and tag.value)


def _by_cv2(path):
    import cv2

    if (pixels := cv2.imread(path, cv2.IMREAD_UNCHANGED)) is None:
        raise OSError("not an image")
    return pixels, None


def _by_pillow(path):
    from PIL import Image

    with Image.open(path) as file:
        return np.array(file), _number(file.tag_v2.get(42113))


def _number(text):
    return float(text.strip("\0 ")) if text else None


def _write(path, codes):
    partial = path.with_name(f".{path.name}.partial.tif")
    try:
        try:
            import tifffile

            tifffile.imwrite(str(partial), codes)
        except ImportError:
            try:
                from PIL import Image

                Image.fromarray(codes).save(str(partial), "TIFF")
            except ImportError:
                import cv2

                if not cv2.imwrite(str(partial), codes):
                    raise OSError("cv2 wrote nothing") from None
        os.replace(partial, path)
    finally:
        if partial.exists():
            partial.unlink()


# From tiles to maps


class _Submission:
    """All that model.pth holds."""

    def __init__(self, path):
        if not os.path.isfile(path):
            raise SubmissionError(f"{path}: no such file")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch 2.0, of its own loader
                content = torch.load(str(path), map_location="cpu", weights_only=True)
        except Exception as err:  # torch has a dozen kinds for files that are not its own
            raise SubmissionError(f"{path}: not a model, or cut short ({' '.join(str(err).split())[:200]})") from err
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise SubmissionError(f"{path}: a torch file, but no {FORMAT}")
        if content.get("version") != VERSION:
            raise SubmissionError(f"{path}: version {content.get('version')}; this solution.py reads {VERSION}")
        try:
            self.members = [_Member(**member) for member in content["members"]]
            self.passes = [(k, scale) for scale in content["scales"] for k in content["views"]]
            self.temperature, self.postprocess = content["temperature"], content["postprocess"]
            self.bias, self.offsets = (torch.tensor(content[n]).view(K, 1, 1) for n in ("bias", "offsets"))
            self.seconds = content["seconds_per_tile"]
            if not self.members or not self.passes:
                raise ValueError("no member, view or scale")
            _postprocess(np.zeros((1, 1), np.uint8), **self.postprocess)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as err:
            raise SubmissionError(f"{path}: damaged ({' '.join(str(err).split())[:200]})") from err
        if text := os.environ.get(LIMIT):
            try:
                self.seconds = float(text)
            except ValueError:
                self.seconds = -1.0
            if not self.seconds >= 0:
                raise SubmissionError(f"{LIMIT}={text}: use a number of seconds, 0 for no limit")

    @torch.inference_mode()
    def codes(self, files):
        """Return the map of a tile (H, W), in the codes of the competition."""
        began = time.monotonic()
        image = _read_tile(files)
        classes = self._decide(self._probabilities(image, began))
        classes[np.isnan(image[0])] = IGNORE
        classes = _postprocess(classes, **self.postprocess)
        return CODES[np.where(classes == IGNORE, 0, classes)]

    def _probabilities(self, image, began):
        inputs = [member.normalised(image) for member in self.members]
        total, rounds, slowest = 0, 0, 0.0
        for k, scale in self.passes:
            start = time.monotonic()
            for member, x in zip(self.members, inputs):
                total = total + member.weight * _one_pass(member.softmax, x, k, scale)
            rounds, now = rounds + 1, time.monotonic()
            slowest = max(slowest, now - start)
            if self.seconds and now - began + slowest > self.seconds:
                break
        return (total / (sum(member.weight for member in self.members) * rounds))[0]

    def _decide(self, probs):
        """Return the class of the largest log q + offset, q = softmax(log p / T + bias); the lower one of equals."""
        if self.temperature != 1 or self.bias.any():
            probs = probs.clamp(min=2.0**-25).log().div(self.temperature).add(self.bias).softmax(0)
        # factors, since rounded logarithms make equals of unequal probabilities
        offsets = self.offsets.double()
        return (probs * (offsets - offsets.max()).exp().float()).argmax(0).numpy().astype(np.uint8)


class _Member:
    """One model."""

    def __init__(self, arch, attention, bands, mean, std, texture, weight, weights):
        self.bands, self.weight = list(bands), float(weight)
        self.mean, self.std = (np.array(s, np.float32)[:, None, None] for s in (mean, std))
        self.texture = texture
        self.net = _Unet(arch, len(self.bands), attention)
        self.net.load_state_dict({n: w.float() if w.is_floating_point() else w for n, w in weights.items()})
        self.net.eval().to(memory_format=torch.channels_last)
        for band in self.bands:
            kind, base = _texture_of(band) or (None, band)
            if base not in BANDS.values() or kind and (kind not in SMOOTH or base not in texture["edges"]):
                raise ValueError(f"band {band}: a tile has {', '.join(BANDS.values())}")

    def normalised(self, image):
        """Return the model's input (1, C, H, W), 0 where there is no data."""
        image = _with_texture(image, self.bands, self.texture)
        return torch.from_numpy(np.nan_to_num((image - self.mean) / self.std, nan=0.0))[None]

    def softmax(self, x):
        return self.net(x.contiguous(memory_format=torch.channels_last)).softmax(1)


def _one_pass(model, x, k, scale):
    """Return what the model says of view k at a scale, turned and resized back (1, K, H, W)."""
    found = _at_scale(model, _view(x, k), scale)
    return _flip(found.mT if k & 4 else found, k)


def _view(x, k):
    x = _flip(x, k)
    return x.mT if k & 4 else x


def _flip(x, k):
    return x.flip([axis for bit, axis in ((1, -1), (2, -2)) if k & bit])


def _at_scale(model, x, scale):
    """Return what the model says of the resized image, at its own size. Pixels without data are left out."""
    if scale == 1:
        return model(x)
    how = {"mode": "bilinear", "align_corners": False}
    size = [max(round(side * scale), 1) for side in x.shape[-2:]]
    data = (x != 0).any(1, keepdim=True).to(x.dtype)
    share = F.interpolate(data, size, **how)
    small = F.interpolate(x * data, size, **how) / share.clamp(min=0.5) * (share >= 0.5)
    return F.interpolate(model(small), x.shape[-2:], **how)


# The network: the U-Net of segmentation-models-pytorch 0.6 and torchvision's ResNet, names as in their state dicts


class _Residual(nn.Module):
    def __init__(self, channels, width, stride, wide):
        super().__init__()
        plan = ((1, 1, width), (3, stride, width), (1, 1, 4 * width)) if wide else ((3, stride, width), (3, 1, width))
        self.steps, out = len(plan), channels
        for i, (kernel, step, n) in enumerate(plan, 1):
            setattr(self, f"conv{i}", nn.Conv2d(out, n, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(n))
            out = n
        self.downsample = nn.Identity()
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for i in range(1, self.steps + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(F.relu(y) if i > 1 else y))
        return F.relu(y + self.downsample(x))


class _Encoder(nn.Module):
    def __init__(self, arch, bands):
        super().__init__()
        known = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
        if arch not in known:
            raise ValueError(f"encoder {arch}: this solution.py knows {', '.join(known)}")
        wide = arch == "resnet50"
        self.conv1, self.bn1 = nn.Conv2d(bands, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        out, self.channels = 64, [64]
        for i, blocks in enumerate(known[arch]):
            layer, width = [], 64 * 2**i
            for k in range(blocks):
                layer.append(_Residual(out, width, 2 if i and not k else 1, wide))
                out = 4 * width if wide else width
            setattr(self, f"layer{i + 1}", nn.Sequential(*layer))
            self.channels.append(out)

    def forward(self, x):
        features = [x, F.relu(self.bn1(self.conv1(x)))]
        x = F.max_pool2d(features[-1], 3, 2, 1)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
            features.append(x)
        return features


class _Scse(nn.Module):
    def __init__(self, channels):
        super().__init__()
        channel = nn.Sequential(*_squeeze(channels, channels // 16))
        spatial = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())
        self.attention = nn.ModuleDict({"cSE": channel, "sSE": spatial})

    def forward(self, x):
        return x * self.attention["cSE"](x) + x * self.attention["sSE"](x)


class _Cse(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Sequential(*_squeeze(channels, max(channels // 16, 4)))

    def forward(self, x):
        return x * self.gate(x)


def _squeeze(channels, hidden):
    first, second = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
    return nn.AdaptiveAvgPool2d(1), first, nn.ReLU(), second, nn.Sigmoid()


class _Up(nn.Module):
    def __init__(self, channels, skip, out, attention):
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Sequential(nn.Conv2d(n, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
            for n in (channels + skip, out)
        )
        self.attention1 = attention(channels + skip) if skip else nn.Identity()
        self.attention2 = attention(out)

    def forward(self, x, skip, size):
        x = F.interpolate(x, size=size, mode="nearest")
        if skip is not None:
            x = self.attention1(torch.cat([x, skip], 1))
        return self.attention2(self.conv2(self.conv1(x)))


class _Unet(nn.Module):
    """Images (B, C, H, W) of any size to logits (B, K, H, W)."""

    def __init__(self, arch, bands, attention):
        super().__init__()
        kinds = {"scse": _Scse, "cse": _Cse, None: nn.Identity}
        self.encoder = _Encoder(arch, bands)
        skips, widths = [*self.encoder.channels[::-1], 0], (256, 128, 64, 32, 16)
        inputs = (skips[0], *widths)
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList(
            _Up(inputs[i], skips[i + 1], widths[i], kinds[attention]) for i in range(len(widths))
        )
        self.segmentation_head = nn.Sequential(nn.Conv2d(widths[-1], K, 3, padding=1))

    def forward(self, x):
        height, width = x.shape[-2:]
        down, right = -height % 32, -width % 32
        if down or right:
            x = F.pad(x, (0, right, 0, down), mode="reflect" if down < height and right < width else "replicate")
        image, *skips, x = self.encoder(x)
        for block, skip in zip(self.decoder.blocks, [*skips[::-1], None]):
            x = block(x, skip, (image if skip is None else skip).shape[-2:])
        return self.segmentation_head(x)[..., :height, :width]


# Texture bands, as core/glcm.py of glacier_fastai explains them

SMOOTH = {"contrast": 0.0, "dissimilarity": 0.0, "energy": 1.0, "asm": 1.0, "homogeneity": 1.0}
TERMS = {
    "contrast": (lambda d: d**2, 1),
    "dissimilarity": (lambda d: d, 1),
    "homogeneity": (lambda d: 1 / (1 + d**2), 2**36),
}


def _texture_of(band):
    match = re.fullmatch(r"glcm_(\w+)\((\w+)\)", band)
    return match and match.groups()


def _with_texture(image, bands, texture):
    """Return the wanted bands of a tile (C, H, W), NaN where it has no data."""
    names, valid = list(BANDS.values()), ~np.isnan(image[0])
    out = np.empty((len(bands), *valid.shape), np.float32)
    levels = {}
    for k, band in enumerate(bands):
        if band in names:
            out[k] = image[names.index(band)]
            continue
        kind, base = _texture_of(band)
        edges = np.array(texture["edges"][base], np.float32)
        if base not in levels:
            found = np.searchsorted(edges, image[names.index(base)], side="right")
            levels[base] = torch.from_numpy(np.where(valid, found, IGNORE))
        found = _glcm(levels[base], len(edges) + 1, kind, texture["window"]).numpy()
        out[k] = np.where(valid, np.nan_to_num(found, nan=SMOOTH[kind]), np.nan)
    return out


def _glcm(levels, n_levels, kind, window):
    """Return texture per pixel (H, W), the mean over four directions of those with a pair of pixels in the window."""
    low, up = np.triu_indices(n_levels, 1)
    apart = np.concatenate([np.zeros(n_levels, np.int64), up - low])
    code_of = np.full((256, 256), len(apart))  # of two levels: first those that are equal, last those without data
    code_of[range(n_levels), range(n_levels)] = range(n_levels)
    code_of[low, up] = code_of[up, low] = n_levels + np.arange(len(low))
    term, scale = TERMS.get(kind, (lambda d: 0 * d, 1))
    there, terms = (
        torch.from_numpy(np.append(t, 0)) for t in (np.ones_like(apart), np.rint(term(apart) * scale).astype(int))
    )
    code_of = torch.from_numpy(code_of)
    image = F.pad(levels, (window // 2,) * 4, value=IGNORE)
    total, used = torch.zeros(2, *levels.shape, dtype=torch.float64)
    for dr, dc in ((0, 1), (1, 1), (1, 0), (1, -1)):
        high, wide = window - dr, window - abs(dc)
        first = image[: len(image) - dr, max(0, -dc) : image.shape[1] - max(0, dc)]
        second = image[dr:, max(0, dc) : image.shape[1] - max(0, -dc)]
        codes = code_of[first, second]
        n = _slide(_slide(there[codes], high, 0), wide, 1).double()
        if kind in TERMS:
            value = _slide(_slide(terms[codes], high, 0), wide, 1) / n
        else:
            value = _squares(codes, n_levels, high, wide) / (2 * n**2)
        total += torch.where(n > 0, value.sqrt() if kind == "energy" else value, torch.zeros_like(n))
        used += n > 0
    return (total / (used.masked_fill(used == 0, torch.nan) * scale)).float()


def _slide(x, size, axis):
    """Sum every `size` neighbours along an axis."""
    up_to = F.pad(x, (1, 0) if axis else (0, 0, 1, 0)).cumsum(axis, dtype=x.dtype)
    places = x.shape[axis] - size + 1
    return up_to.narrow(axis, size, places) - up_to.narrow(axis, 0, places)


def _squares(codes, n_levels, high, wide):
    """Sum the squared counts of each code in every box, doubled where levels are equal: its pairs of pairs."""
    codes = codes.int()
    weight = 1 + (codes < n_levels).int() - (codes == n_levels * (n_levels + 1) // 2).int()
    height, width = codes.shape
    total = 0
    for dx in range(wide):
        column = 0
        for dy in range(high):
            near, far = slice(width - dx), slice(dx, width)
            for a, b in [(near, far), (far, near)] if dx and dy else [(near, far)]:
                same = codes[: height - dy, a] == codes[dy:, b]
                # the shift back gives the same once more
                column = column + _slide(same * weight[: height - dy, a], high - dy, 0) * (2 if dx or dy else 1)
        total = total + _slide(column.long(), wide - dx, 1)
    return total


# Post-processing, as core/morphology.py of glacier_fastai explains it


def _postprocess(classes, min_size, fill_holes, smooth):
    """Smooth a map (H, W) of classes, 255 without data, by majority; take out specks and fill holes."""
    least, fill = (np.array([0, *sizes[1:], 0]) for sizes in (min_size, fill_holes))
    out = np.pad(np.minimum(_majority(classes, smooth), K), 1, constant_values=K)
    if least.any():
        parts, size, code = _components(out)
        goes = size < least[code]
        votes = _votes(parts, goes, np.where(goes, K, code)[parts])
        out = np.where(goes, votes[:, :K].argmax(1), code).astype(np.uint8)[parts]
    if fill.any():
        parts, size, code = _components(out)
        asked = (code == 0) & (size < fill.max())
        votes = _votes(parts, asked, out)
        into = votes[:, 1:K].argmax(1) + 1
        out = np.where(asked & (votes[:, K] == 0) & (size < fill[into]), into, code).astype(np.uint8)[parts]
    return np.where(classes == IGNORE, classes, out[1:-1, 1:-1])


def _majority(classes, radius):
    if not radius:
        return classes
    most, out = np.full(classes.shape, -1), classes.copy()
    for k in range(K):
        count = np.pad((classes == k).astype(np.int64), radius)
        for axis in (0, 1):
            count = _slide(torch.from_numpy(count), 2 * radius + 1, axis).numpy()
        score = 2 * count + (classes == k)
        out[(score > most) & (classes < K)] = k
        most = np.maximum(most, score)
    return out


def _components(codes):
    """Return the component of each pixel, and of each component its pixels and code.

    Pixels side by side in a row are one run. Where runs of a code touch, the root of the one points to the root of the
    other if that comes before it, until all that touch have one root.
    """
    starts = np.ones(codes.shape, bool)
    starts[:, 1:] = codes[:, 1:] != codes[:, :-1]
    run = starts.cumsum().reshape(codes.shape) - 1
    touch = (codes[1:] == codes[:-1]) & (starts[1:] | starts[:-1])
    a, b = run[:-1][touch], run[1:][touch]
    root = np.arange(starts.sum())
    while len(a):
        root[np.maximum(a, b)] = np.minimum(a, b)
        while ((further := root[root]) != root).any():
            root = further
        a, b = root[a], root[b]
        a, b = a[a != b], b[a != b]
    parts = (np.cumsum(root == np.arange(len(root))) - 1)[root][run]
    size = np.bincount(parts.ravel())
    code = np.empty(len(size), np.uint8)
    code[parts] = codes
    return parts, size, code


def _votes(parts, asked, codes):
    """Count the codes (0 to K) of the pixels that border each component that is asked (components, K + 1)."""
    votes = np.zeros(len(asked) * (K + 1), np.int64)
    wanted = asked[parts]
    every, before, after = slice(None), slice(None, -1), slice(1, None)
    for near, far in (((before, every), (after, every)), ((every, before), (every, after))):
        border = parts[near] != parts[far]
        for a, b in ((near, far), (far, near)):
            at = border & wanted[a]
            votes += np.bincount(parts[a][at] * (K + 1) + codes[b][at], minlength=len(votes))
    return votes.reshape(-1, K + 1)


if __name__ == "__main__":
    sys.exit(main())
