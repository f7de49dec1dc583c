"""The competition's folder at its true size: its store made and opened, and opened again."""

import time
import warnings

import numpy as np
import rasterio
from folders import competition_folder

from glacier_fastai.data.raw import open_tiles

IDS = [f"{r:02}_{c:02}" for r in range(5) for c in range(5)]


def test_competition_store_made_and_opened(tmp_path):
    folder = competition_folder(tmp_path / "comp", ids=IDS, size=512)
    files = [f for band in folder.bands for f in band.values()] + list(folder.labels.values())

    def read() -> None:
        for path in files:
            with rasterio.open(path) as file:
                np.asarray(file.read(1))

    def timed(job) -> float:
        start = time.perf_counter()
        job()
        return time.perf_counter() - start

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        reading = min(timed(read) for _ in range(3))
    made = timed(lambda: open_tiles(tmp_path / "comp"))
    again = min(timed(lambda: open_tiles(tmp_path / "comp")) for _ in range(5))
    print(
        f"\n25 tiles of 512 px, 5 bands and labels: store made and opened in {made:.2f} s, {made / reading:.1f} of "
        f"reading the {len(files)} files with rasterio ({reading:.2f} s); opened again in {again * 1e3:.0f} ms"
    )
