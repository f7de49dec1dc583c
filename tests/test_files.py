import os

import pytest
import torch

from glacier_fastai.errors import OutputError
from glacier_fastai.files import whole_file


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()  # as any other file


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_fails_within_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("job", [lambda f: f.write(bytes(10_000)), lambda f: torch.save(torch.zeros(5_000), f)])
def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path, job):
    path, partial = tmp_path / "a.bin", tmp_path / ".a.bin.partial"
    partial.symlink_to("/dev/full")
    says = r"a\.bin: cannot be written \(No space left on device\); there is none before it$"
    with pytest.raises(OutputError, match=says), whole_file(path) as file:
        job(file)
    assert names(tmp_path) == []
    path.write_bytes(b"old")
    partial.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="the one before it is kept"), whole_file(path) as file:
        job(file)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_other_errors_of_torch_are_not_taken_for_the_disks(tmp_path):
    with pytest.raises(RuntimeError, match="shape"), whole_file(tmp_path / "a"):
        torch.zeros(2).reshape(3)
    says = r"none/a: cannot be written \(No such file or directory\)"
    with pytest.raises(OutputError, match=says), whole_file(tmp_path / "none" / "a"):
        raise AssertionError("never comes here")
