"""Time and memory of preparing HKH. Run: pytest tests/benchmarks -k hkh -s."""

from __future__ import annotations

import re
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from benchmarks.timing import interleaved
from hkh_folders import hkh_archive, scene, slice_name

from glacier_fastai.data.sources.hkh import prepare_hkh
from glacier_fastai.data.tiles import TileWriter

TILES, SIZE = 24, 512
STATUS = Path("/proc/self/status")


def write(root: Path, n: int, kept: int, little: int = 0) -> Path:
    """Write n slices: the first with ice enough to be kept, then some with too little of it, the others without."""
    values, mask = scene(1, 3, SIZE, np.random.default_rng(0))  # the first of the three has all of it
    values, mask = values[:, :SIZE], mask[:, :SIZE]
    masks = {"kept": mask, "little": mask.copy(), "none": mask * 0}
    masks["little"][: SIZE // 4] = masks["little"][SIZE // 4 + 2 :] = 0
    (root / "slices").mkdir(parents=True)
    for k in range(n):
        np.save(root / "slices" / slice_name(0, k, "img"), values)
        which = "kept" if k < kept else "little" if k < kept + little else "none"
        np.save(root / "slices" / slice_name(0, k, "mask"), masks[which])
    return root


@pytest.mark.parametrize("kept, little", [(TILES, 0), (2, 5)])
def test_hkh_time(tmp_path, monkeypatch, kept, little):
    """All tiles kept, which is the worst case; and in shares near those published: 8 %, 20 % with less than 5 % ice."""
    root = write(tmp_path / "hkh", TILES, kept, little)
    files = sorted((root / "slices").iterdir())

    def load():
        for file in files:
            np.load(file)

    def timed_add(self, *args, **kwargs):
        start = time.perf_counter()
        add(self, *args, **kwargs)
        in_add[-1] += (time.perf_counter() - start) * 1e3

    def prepare():
        in_add.append(0.0)
        assert len(prepare_hkh(root, tmp_path / "store")) == kept

    def remove():
        shutil.rmtree(tmp_path / "store")

    add, in_add = TileWriter.add, []
    monkeypatch.setattr(TileWriter, "add", timed_add)
    best = interleaved({"load": load, "prepare": prepare, "remove": remove}, 9)
    print(
        f"\nprepare_hkh of {TILES} slices of {SIZE} px, {kept} of them kept, warm cache: {best['prepare']:.0f} ms, "
        f"{best['prepare'] / best['load']:.1f} times numpy.load of the same files ({best['load']:.0f} ms); "
        f"{min(in_add):.0f} ms of it in TileWriter.add"
    )


def peak() -> float:
    """Largest resident memory of the process so far, MB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) / 2**10


def peaks(base: Path) -> list[float]:
    """Peak memory before, after 8 and 32 tiles of a folder, and after 8 and 32 of archives with all images first."""
    out = [peak()]
    for kind in ("folder", "tar"):
        for n in (8, 32):
            root = base / str(n) / "glacier_data"
            source = root if kind == "folder" else hkh_archive(root, base / f"{n}.tar", "images")
            assert len(prepare_hkh(source, base / "store")) == n
            shutil.rmtree(base / "store")
            out.append(peak())
    return out


@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's account of memory")
def test_hkh_memory(tmp_path):
    for n in (8, 32):
        write(tmp_path / str(n) / "glacier_data", n, n)
    with get_context("spawn").Pool(1) as pool:  # a process has one peak, so this test wants its own
        before, *after = pool.apply(peaks, (tmp_path,))
    a, b, c, d = (m - before for m in after)
    print(
        f"\npeak memory of prepare_hkh, {SIZE} px, above {before:.0f} MB of Python and its imports: folder of 8 tiles "
        f"{a:.0f} MB, of 32 {b:.0f} MB; archive with all images before all masks, 8 tiles {c:.0f} MB, 32 {d:.0f} MB"
    )
    assert d < 1024
