import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from glacier_fastai import memory
from glacier_fastai.errors import DataError


def test_what_fits_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2 * 10**9)
    memory.fits(2e9, "s.tif: its pixels", "cut it")
    with pytest.raises(DataError, match=r"s\.tif: its pixels need 2\.1 GB of memory, but 2\.0 GB are free; cut it"):
        memory.fits(2.1e9, "s.tif: its pixels", "cut it")


def test_control_groups_count(tmp_path, monkeypatch):
    for version, (root, limit, use, cache) in memory.CGROUPS.items():
        root = tmp_path / root.strip("/")
        (inner := root / "a" / "b").mkdir(parents=True)
        for folder, most in ((root / "a", 10**9), (inner, 2 * 10**9)):
            (folder / limit).write_text(f"{most}\n")
            (folder / use).write_text(f"{10**8}\n")
            (folder / "memory.stat").write_text(f"anon 7\n{cache} {10**7}\n")
        monkeypatch.setitem(memory.CGROUPS, version, (str(root), limit, use, cache))
    text = tmp_path / "cgroup"
    monkeypatch.setattr(memory, "OWN", str(text))
    for line in ("0::/a/b", "4:memory:/a/b", "0::/elsewhere\n9:cpu:/a/b\n4:cpu,memory:/a/b"):
        text.write_text(line + "\n")
        assert memory._cgroups() == [2 * 10**9 - 9 * 10**7, 10**9 - 9 * 10**7]
    text.write_text("0::/\n")
    (Path(memory.CGROUPS[2][0]) / "memory.max").write_text("max\n")
    assert memory._cgroups() == []


def test_the_limit_of_a_process_counts():
    code = "from glacier_fastai.memory import available; print(available())"
    start = "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9,) * 2); "
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    assert 0 <= int(done.stdout) < 10**9
    assert 0 < memory.available() <= psutil.virtual_memory().total
