"""A submission to GlacierHack 2025: `solution.py`, which needs nothing of ours, and the models in `model.pth`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bands import COMPETITION_CODES, IGNORE, texture_of
from ..core.dihedral import VIEWS
from ..data.channels import Texture
from ..data.raw import open_tiles
from ..data.sources.competition import find_competition, prepare_competition, tile_id
from ..data.tiles import TileStore
from ..errors import BundleError, DataError, OutputError, PredictionError, note
from ..files import whole_file, whole_folder, write_text
from ..model.bundle import described
from ..model.ensemble import Ensemble, Member
from ..model.evaluate import predict_tiles
from ..model.registry import architecture
from ..reading import read_arrays, refusing
from ..recipe import ENCODERS, PostprocessRecipe
from . import solution
from .standalone import standalone

__all__ = ["check_submission", "tiles_to_check", "write_submission"]

BANDS = ("blue", "green", "red", "swir1", "thermal")
OURS = {"solution.py", "model.pth", "__pycache__"}  # what a submission holds
RETURNED = """
import sys, time, numpy
sys.path.insert(0, sys.argv[1])
import solution
folders = {f"Band{k}": f"{sys.argv[2]}/Band{k}" for k in range(1, 6)}
began = time.monotonic()
maps = solution.maskgeration(folders, f"{sys.argv[1]}/model.pth")
numpy.savez(sys.argv[3], seconds=(time.monotonic() - began) / len(maps), **maps)
"""


def _is_ours(path: Path) -> bool:
    return path.name in OURS and path.is_dir() == (path.name == "__pycache__")


def write_submission(
    ensemble: Ensemble,
    out: str | os.PathLike,  # folder to make
    seconds_per_tile: float = 0.0,  # rounds of views beyond that are left out on the machine it runs on; 0: no limit
    max_megabytes: float = 300.0,  # of model.pth
    overwrite: bool = False,  # replace the folder
) -> Path:
    """Write a folder with `solution.py` and `model.pth`; return it.

    Raises:
        BundleError: A model takes a band that the competition does not have.
        OutputError: The folder exists already or cannot be written, or model.pth would be too large.
    """
    out = Path(out).absolute()
    if overwrite and out.exists() and not (out.is_dir() and all(map(_is_ours, out.iterdir()))):
        raise OutputError(f"{out}: holds other things than a submission; choose another folder")
    for member in ensemble.members:
        known = (*BANDS, *(b for b in member.bundle.bands if (t := texture_of(b)) and t[1] in BANDS))
        if other := [b for b in member.bundle.bands if b not in known]:
            raise BundleError(
                f"{member.path or 'bundle'}: takes {', '.join(other)}; the competition has {', '.join(BANDS)}"
            )
        kind, options = architecture(member.bundle.arch, member.bundle.options)
        if kind.name != "unet" or options["encoder"] not in ENCODERS:
            raise BundleError(
                f"{member.path or 'bundle'}: is a {described(kind.name, options)}; a submission carries a unet with "
                f"encoder {', '.join(ENCODERS)}"
            )
        units = member.bundle.profile.units
        if other := [b for b in BANDS if units.get(b, "dn") != "dn" and b not in member.bundle.profile.scaling]:
            raise BundleError(
                f"{member.path or 'bundle'}: was trained on {other[0]} in {units[other[0]]}, and nothing says how the "
                "competition's numbers become that; fine-tune it on its tiles"
            )
        if scaling := member.bundle.profile.scaling:
            said = ", ".join(f"{b} {s:g} n {o:+g}" for b, (s, o) in scaling.items() if b in BANDS)
            note(f"{member.path or 'bundle'}: the competition's numbers n become values as in training: {said}", [])
        if member.bundle.standardised:
            raise BundleError(f"{member.path or 'bundle'}: trained on standardised values; fine-tune it on its tiles")
    cleaning = ensemble.predict.postprocess or PostprocessRecipe(min_size={}, fill_holes={})
    content: dict[str, Any] = {
        "format": "glacier_fastai submission",
        "version": 1,
        "seconds_per_tile": float(seconds_per_tile),
        "members": [_member(m) for m in ensemble.members],
        "views": list(VIEWS) if ensemble.predict.views else [0],
        "scales": list(ensemble.predict.scales),
        "temperature": ensemble.calibration.temperature,
        "bias": list(ensemble.calibration.bias),
        "offsets": list(ensemble.calibration.offsets),
        "tells_debris": ensemble.tells_debris,
        "postprocess": cleaning.by_code(),
    }
    with whole_folder(out, replace=overwrite) as partial:
        write_text(partial / "solution.py", standalone(solution))
        with whole_file(partial / "model.pth") as file:
            torch.save(content, file)
        size = (partial / "model.pth").stat().st_size / 1e6
        if size > max_megabytes:
            each = ", ".join(f"{_size(m):.0f} MB" for m in content["members"])
            raise OutputError(
                f"{out / 'model.pth'}: would have {size:.0f} MB ({each}), allowed are {max_megabytes:g}; "
                "leave out a model"
            )
    return out


def _member(member: Member) -> dict[str, Any]:
    bundle = member.loaded()
    # solution.py reads numbers, so what the bundle knows of values is said of numbers
    how = [bundle.profile.scaling.get(band, (1.0, 0.0)) for band in bundle.bands]
    texture, (_, options) = bundle.texture, architecture(bundle.arch, bundle.options)
    mean = [(m - o) / s for m, (s, o) in zip(bundle.mean, how, strict=True)]
    std = [d / s for d, (s, _) in zip(bundle.std, how, strict=True)]
    if texture is not None:
        edges = {
            band: [(edge - offset) / scale for edge in values]
            for band, values in texture["edges"].items()
            for scale, offset in [bundle.profile.scaling.get(band, (1.0, 0.0))]
        }
        texture = {**texture, "edges": edges}
    with refusing(
        member.path or "bundle", BundleError, "its scale, offset and statistics give no numbers to count with"
    ):
        with np.errstate(over="ignore"):
            numbers = np.array([mean, std], np.float32)
        if not np.isfinite(numbers).all() or (numbers[1] <= 0).any():
            raise ValueError("not finite, or a deviation is not positive")
        if texture is not None:
            Texture(**texture)
    return {
        "arch": options["encoder"],
        "attention": options["attention"],
        "scale": options["scale"],
        "bands": list(bundle.bands),
        "mean": mean,
        "std": std,
        "texture": texture,
        "weight": member.weight,
        "weights": bundle.halved(),
    }


def _size(member: dict[str, Any]) -> float:
    return sum(w.numel() * w.element_size() for w in member["weights"].values()) / 1e6


def tiles_to_check(
    data: str | os.PathLike,  # folder of the competition
) -> Path:
    """Return the folder that holds Band1 .. Band5; raises `DataError`."""
    if (root := find_competition(data)) is None:
        raise DataError(f"{data}: no folder Band1 in it; give the folder that holds Band1 .. Band5")
    return root


def check_submission(
    folder: str | os.PathLike,  # as from `write_submission`
    ensemble: Ensemble,  # what it was written of
    data: str | os.PathLike,  # folder of the competition; labels are not needed
) -> dict[str, float]:
    """Run a submission in processes of its own, in both interfaces, and compare its masks with our own prediction.

    Returns:
        `tiles`, `megabytes` of model.pth, and `seconds_per_tile` without limit on this machine.

    Raises:
        PredictionError: It failed, or a mask differs; the message names the tile and counts the pixels.
    """
    folder = Path(folder)
    root = tiles_to_check(data)
    wanted = {}
    with tempfile.TemporaryDirectory() as work:
        store = _tiles(ensemble, root, Path(work) / "tiles")
        for i, classes, _ in predict_tiles(ensemble, store, device=torch.device("cpu")):  # as it runs
            codes = np.array(COMPETITION_CODES, np.uint8)[np.where(classes == IGNORE, 0, classes)]
            wanted[store.table["id"][i]] = codes
        out = Path(work) / "maps"
        _run([folder / "solution.py", "--data", root, "--out", out])
        _run(["-c", RETURNED, folder, root, Path(work) / "maps.npz"])
        returned = read_arrays(Path(work) / "maps.npz", PredictionError)
        seconds = float(returned.pop("seconds"))
        _compare("returned", returned, wanted)
        _compare("written", _written(out), wanted)
    megabytes = (folder / "model.pth").stat().st_size / 1e6
    return {"tiles": len(wanted), "megabytes": round(megabytes, 1), "seconds_per_tile": round(seconds, 2)}


def _tiles(ensemble: Ensemble, root: Path, out: Path) -> TileStore:
    """Return the tiles of a competition folder, in the units that the models know."""
    if not (scaling := ensemble.members[0].bundle.profile.scaling):
        return open_tiles(root, BANDS)
    scale, offset = ({band: both[k] for band, both in scaling.items() if band in BANDS} for k in (0, 1))
    return prepare_competition(root, out, scale=scale, offset=offset)


def _run(words: list[Any]) -> None:
    env = {**os.environ, "GLACIER_SECONDS_PER_TILE": "0", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-I", *map(str, words)], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PredictionError(f"the submission failed: {last}")


def _written(out: Path) -> dict[str, np.ndarray]:
    from skimage.io import imread

    return {tile_id(path): imread(path) for path in sorted(out.iterdir())}


def _compare(how: str, found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    if found.keys() != wanted.keys():
        raise PredictionError(f"the submission {how} maps of {', '.join(found)}; wanted {', '.join(wanted)}")
    for name, mask in wanted.items():
        if found[name].shape != mask.shape or (found[name] != mask).any():
            other = "another size" if found[name].shape != mask.shape else f"{int((found[name] != mask).sum())} pixels"
            raise PredictionError(f"tile {name}: the mask {how} by the submission differs from ours in {other}")
