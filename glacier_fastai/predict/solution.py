"""Glacier maps of GlacierHack 2025 tiles: the `solution.py` of a submission, beside its `model.pth`.

A submission's file holds what is imported from glacier_fastai here. It runs on its own: Python 3.9, torch 2.0, numpy,
and one of tifffile, cv2 and PIL. Two ways to call it:

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
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from ..bands import CLASSES, COMPETITION_CODES, IGNORE, texture_of
from ..core.calibration import all_glacier, calibrated, decide
from ..core.dihedral import VIEWS, at_scale, one_pass
from ..core.glcm import glcm_torch, quantize
from ..core.moments import standardise
from ..core.morphology import postprocess
from ..data.channels import SMOOTH
from ..data.sources.competition import tile_id
from ..errors import DataError

__all__ = ["SubmissionError", "main", "maskgeneration", "maskgeration"]

FORMAT, VERSION = "glacier_fastai submission", 1
BANDS = {"Band1": "blue", "Band2": "green", "Band3": "red", "Band4": "swir1", "Band5": "thermal"}
CODES = np.array(COMPETITION_CODES, np.uint8)
LIMIT = "GLACIER_SECONDS_PER_TILE"


SubmissionError = DataError
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
    if len(folders) < len(imagepath):
        raise SubmissionError(f"two of {', '.join(sorted(map(str, imagepath)))} are one band; name each once")
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
    out: dict = {}
    for path in paths:
        if not path.is_file():
            raise SubmissionError(f"{path}: is no file; remove it")
        tile = tile_id(path)
        if tile in out:
            raise SubmissionError(f"{path}: tile {tile} is also in {out[tile].name}; keep one of them")
        out[tile] = path
    if not out:
        raise SubmissionError(f"{folder}: no .tif in it")
    return out


def _read_tile(files):
    """Return values (5, H, W) float32, NaN where a band is not finite or nodata, or all are 0; 0 in some is data."""
    values, declared = zip(*map(_read, files))
    for path, band in zip(files, values):
        if band.ndim != 2 or band.shape != values[0].shape:
            shape, wanted = (" x ".join(map(str, s)) for s in (band.shape, values[0].shape[:2]))
            raise SubmissionError(f"{path}: {shape} px; wanted one band, of {wanted} px as in Band1")
    image = np.stack(values).astype(np.float32)
    known = (np.abs(image) < 1e20).all(0) & (image != 0).any(0)  # no band holds a number beyond
    for band, nodata in zip(values, declared):
        if nodata:
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
        page: Any = file.pages[0]
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
        return np.array(file), _number(getattr(file, "tag_v2", {}).get(42113))


def _number(text):
    return float(text.strip("\0 ")) if text else None


def _write(path, codes):
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / f"{path.name}.tif"
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
            self.temperature, self.bias, self.offsets, self.cleaning = (
                content[n] for n in ("temperature", "bias", "offsets", "postprocess")
            )
            self.seconds, self.tells_debris = float(content["seconds_per_tile"]), content["tells_debris"]
            if not self.members or not self.passes:
                raise ValueError("no member, view or scale")
            if not all(type(k) is int and k in VIEWS for k, _ in self.passes):
                raise ValueError(f"views {content['views']}: use 0 to {len(VIEWS) - 1}")
            scales = [*content["scales"], *(member.net.scale for member in self.members)]
            if not all(0.25 <= scale <= 4 for scale in scales):  # written so that NaN fails, as below
                raise ValueError(f"scales {scales}: use 0.25 to 4")
            if len(set(self.passes)) < len(self.passes):
                raise ValueError("a view or scale is named twice")
            if not self.seconds >= 0 or not isinstance(self.tells_debris, bool):
                raise ValueError("seconds_per_tile is no number of seconds, or tells_debris neither true nor false")
            self._classes(torch.full((len(CLASSES), 1, 1), 1 / len(CLASSES)), np.zeros((1, 1), bool))
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
        classes = self._classes(self._probabilities(image, began), np.isnan(image[0]))
        return CODES[np.where(classes == IGNORE, 0, classes)]

    def _probabilities(self, image, began):
        inputs = [member.normalised(image) for member in self.members]
        total, rounds, slowest = torch.zeros(()), 0, 0.0
        for k, scale in self.passes:
            start = time.monotonic()
            for member, x in zip(self.members, inputs):
                total = total + member.weight * one_pass(member.softmax, x, k, scale)
            rounds, now = rounds + 1, time.monotonic()
            slowest = max(slowest, now - start)
            if self.seconds and now - began + slowest > self.seconds:
                break
        return (total / (sum(member.weight for member in self.members) * rounds))[0]

    def _classes(self, probs, unknown):
        """Return class codes (H, W) of mean probabilities (K, H, W), 255 where there is no data."""
        if not self.tells_debris:
            probs = all_glacier(probs)
        if self.temperature != 1 or any(self.bias):
            probs = calibrated(probs, self.temperature, self.bias)
            if not self.tells_debris:
                probs = all_glacier(probs)
        classes = decide(probs, self.offsets).numpy()
        classes[unknown] = IGNORE
        return postprocess(classes, **self.cleaning)


class _Member:
    """One model."""

    def __init__(self, arch, attention, bands, mean, std, texture, weight, weights, scale):
        self.bands, self.weight, self.texture = list(bands), float(weight), texture
        for band in self.bands:
            kind, base = texture_of(band) or (None, band)
            if base not in BANDS.values() or kind and (kind not in SMOOTH or base not in texture["edges"]):
                raise ValueError(f"band {band}: a tile has {', '.join(BANDS.values())}")
        if len(set(self.bands)) < len(self.bands):
            raise ValueError(f"a band is named twice among {', '.join(self.bands)}")
        self.mean, self.std = (torch.tensor(s, dtype=torch.float32)[:, None, None] for s in (mean, std))
        if any(s.shape != (len(self.bands), 1, 1) or not s.isfinite().all() for s in (self.mean, self.std)):
            raise ValueError("mean and std are not one finite number for each band")
        if not self.std.all() or not 0 < self.weight < float("inf"):  # a band of negative scale has a negative one
            raise ValueError("a deviation is 0, or the weight is not positive")
        self.net = _Unet(arch, len(self.bands), attention, scale)
        self.net.load_state_dict({n: w.float() if w.is_floating_point() else w for n, w in weights.items()})
        if not all(w.isfinite().all() for w in self.net.state_dict().values()):
            raise ValueError("a weight is not finite")
        self.net.eval().to(memory_format=torch.channels_last)
        self.normalised(np.ones((len(BANDS), 1, 1), np.float32))  # texture cannot be computed otherwise

    def normalised(self, image):
        """Return the model's input (1, C, H, W), 0 where there is no data."""
        return standardise(torch.from_numpy(self._channels(image)), self.mean, self.std)[None]

    def _channels(self, image):
        """Return the bands of a tile (C, H, W) that the model takes, NaN where it has no data."""
        out = np.empty((len(self.bands), *image.shape[1:]), np.float32)
        for k, band in enumerate(self.bands):
            kind, base = texture_of(band) or (None, band)
            out[k] = image[list(BANDS.values()).index(base)]
            if kind:
                edges = self.texture["edges"][base]
                levels = torch.from_numpy(quantize(out[k], edges))[None]
                found = glcm_torch(levels, len(edges) + 1, [kind], self.texture["window"])[0, 0].numpy()
                out[k] = np.where(np.isnan(out[k]), np.nan, np.nan_to_num(found, nan=SMOOTH[kind]))
        return out

    def softmax(self, x):
        return self.net(x.contiguous(memory_format=torch.channels_last)).softmax(1)


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
        self.downsample: nn.Module = nn.Identity()
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

    def __init__(self, arch, bands, attention, scale):
        super().__init__()
        self.scale = scale
        kinds = {"scse": _Scse, "cse": _Cse, None: nn.Identity}
        self.encoder = _Encoder(arch, bands)
        skips, widths = [*self.encoder.channels[::-1], 0], (256, 128, 64, 32, 16)
        inputs = (skips[0], *widths)
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList(
            _Up(inputs[i], skips[i + 1], widths[i], kinds[attention]) for i in range(len(widths))
        )
        self.segmentation_head = nn.Sequential(nn.Conv2d(widths[-1], len(CLASSES), 3, padding=1))

    def forward(self, x):
        return at_scale(self._padded, x, self.scale)

    def _padded(self, x):
        height, width = x.shape[-2:]
        down, right = -height % 32, -width % 32
        if down or right:
            x = F.pad(x, (0, right, 0, down), mode="reflect" if down < height and right < width else "replicate")
        image, *skips, x = self.encoder(x)
        for block, skip in zip(self.decoder.get_submodule("blocks").children(), [*skips[::-1], None]):
            x = block(x, skip, (image if skip is None else skip).shape[-2:])
        return self.segmentation_head(x)[..., :height, :width]


if __name__ == "__main__":
    sys.exit(main())
