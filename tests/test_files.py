import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from glacier_fastai import files
from glacier_fastai.errors import DataError, DataNote, OutputError
from glacier_fastai.files import (
    Scratch,
    check_room,
    held,
    locked,
    remove_unused,
    whole_file,
    whole_folder,
    work_folder,
    write_text,
)


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


@pytest.mark.parametrize("write", [whole_file, whole_folder])
def test_a_name_that_is_no_text_is_refused(tmp_path, write):
    with pytest.raises(OutputError, match=r"m\\udcff: a name that is not UTF-8"), write(tmp_path / "m\udcff"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_drive_that_cannot_sync_folders_is_written(tmp_path, monkeypatch):
    def fsync(fd, sync=os.fsync):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_file(tmp_path / "a.txt") as file:
        file.write(b"new")
    assert names(tmp_path) == ["a.txt"]


def test_what_fails_within_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.txt"]


@pytest.fixture
def small_files():
    """A limit of file size, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def swallowing(file):
    try:
        file.write(bytes(10_000))
    except OSError:
        pass


@pytest.mark.parametrize(
    "job", [lambda f: f.write(bytes(10_000)), lambda f: torch.save(torch.zeros(5_000), f), swallowing]
)
def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path, small_files, job):
    path = tmp_path / "a.bin"
    says = r"a\.bin: cannot be written \(File too large\); there is none before it$"
    with pytest.raises(OutputError, match=says), whole_file(path) as file:
        job(file)
    assert names(tmp_path) == []
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="the one before it is kept"), whole_file(path) as file:
        job(file)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_lead_nothing_that_is_written_elsewhere(tmp_path, link):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.write_text("mine")
    theirs.mkdir()
    for name in (".a.partial", ".a.0123abcd.partial", "a", ".s.partial", ".b.lock"):
        link(mine, theirs / name)
    write_text(theirs / "a", "new")
    with whole_folder(theirs / "s") as folder:
        (folder / "x").write_text("")
    try:
        with locked(theirs / ".b.lock", "busy"):
            pass
    except OutputError as err:
        assert link is os.symlink and "a link, which is not followed" in str(err)
    assert mine.read_text() == "mine" and (theirs / "a").read_text() == "new"
    (theirs / "to").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="a link, which is not followed"), whole_folder(theirs / "to", replace=True):
        raise AssertionError("never comes here")


def test_leftovers_of_killed_processes_are_swept_up_and_those_of_others_left(tmp_path):
    write = "import os, sys\nfrom glacier_fastai.files import whole_file\nwith whole_file(sys.argv[1]) as f:\n "
    for end in ("os.kill(os.getpid(), 9)", "print('open', flush=True); sys.stdin.read()"):
        command = [sys.executable, "-c", write + end, str(tmp_path / "a")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            assert len(names(tmp_path)) == 1, "of the one that was killed nothing stays when the next one writes"
            write_text(tmp_path / "a", "ours")
            assert len(names(tmp_path)) == (1 if "kill" in end else 2)
            process.stdin.close()
        (tmp_path / "a").unlink()
    assert names(tmp_path) == []


def test_a_folder_that_is_replaced_is_there_at_any_moment(tmp_path):
    path, old = tmp_path / "s", tmp_path / ".s.old"
    old.mkdir()  # killed between two names
    (old / "old").touch()
    with pytest.raises(ZeroDivisionError), whole_folder(path, replace=True):
        raise ZeroDivisionError
    assert names(tmp_path) == ["s"] and names(path) == ["old"]
    with whole_folder(path, replace=True) as partial:
        (partial / "new").touch()
        assert names(path) == ["old"]
    assert names(tmp_path) == ["s"] and names(path) == ["new"]


def test_room_is_looked_for_before_the_work(tmp_path):
    check_room(tmp_path / "new" / "store", 1e6)
    with pytest.raises(OutputError, match=r"store: needs 1,000,000,000\.0 GB, and there are .*make room"):
        check_room(tmp_path / "new" / "store", 1e18)


def test_a_folder_in_use_is_left(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "sign").touch()
    with held(folder / "sign"), held(folder / "sign"):
        remove_unused(folder, "sign")
        assert folder.exists()
    remove_unused(folder, "sign")
    assert not folder.exists()
    remove_unused(folder, "sign")


def test_other_errors_of_torch_are_not_taken_for_the_disks(tmp_path):
    with pytest.raises(RuntimeError, match="shape"), whole_file(tmp_path / "a"):
        torch.zeros(2).reshape(3)
    says = r"none/a: cannot be written \(No such file or directory\)"
    with pytest.raises(OutputError, match=says), whole_file(tmp_path / "none" / "a"):
        raise AssertionError("never comes here")


# locks


@pytest.fixture
def drive(monkeypatch):
    """A drive on which `flock` fails with an error number."""

    def answers(number):
        def flock(fd, operation):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)
        monkeypatch.setattr(files, "_lockless", set())

    return answers


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_drive_without_locks_is_a_note_and_the_work_goes_on(tmp_path, drive, number):
    drive(number)
    says = rf"{tmp_path}: this drive has no locks \({os.strerror(number)}\)"
    with pytest.warns(DataNote, match=says) as said, whole_folder(tmp_path / "a") as partial:
        (partial / "x").write_text("")
    (tmp_path / ".b.lock").write_text("")  # of a process that was killed
    with locked(tmp_path / ".b.lock", "busy"), whole_folder(tmp_path / "c"):
        pass
    assert len(said) == 1
    assert names(tmp_path) == ["a", "c"]


def test_another_error_of_a_lock_is_one_line_and_leaves_nothing(tmp_path, drive):
    drive(errno.EIO)
    says = r"new/a: cannot be made \(Input/output error\); choose another place"
    with pytest.raises(OutputError, match=says), whole_folder(tmp_path / "new" / "a"):
        raise AssertionError("never comes here")
    assert names(tmp_path) == []


HOLDS = """
import sys
from glacier_fastai.files import locked
with locked(sys.argv[1], "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock maps/.lock until its standard input is closed."""
    path = tmp_path / "maps" / ".lock"
    command = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield path, process


SCRATCH = """
import os, signal
from glacier_fastai.files import Scratch
scratch = Scratch()
(scratch.path / "a").touch()
print(scratch.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_folders_of_killed_processes_go_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = Scratch()
    killed = subprocess.run(
        [sys.executable, "-c", SCRATCH], capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    left = Path(killed.stdout.strip())
    assert killed.returncode == -9 and (left / "a").exists()
    Scratch().close()
    assert left.exists()  # one that young may have just begun
    for lock in tmp_path.glob("*/lock"):
        os.utime(lock, (0, 0))
    other = Scratch()
    assert not left.parent.exists() and mine.path.exists()
    del other
    mine.close()
    assert names(tmp_path) == []


def test_files_that_are_made_together_lie_in_a_folder_that_goes(tmp_path):
    (tmp_path / ".s.partial").mkdir()
    (tmp_path / ".s.partial" / "of a killed process").touch()
    with work_folder(tmp_path, "s", "in use") as work:
        assert names(work) == [] and work.parent == tmp_path
        with pytest.raises(OutputError, match="^in use$"), work_folder(tmp_path, "s", "in use"):
            raise AssertionError("never comes here")
        (work / "a").touch()
        (work / "b").touch()
        (work / "a").replace(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    with pytest.raises(OutputError, match=f"^{tmp_path}/c: is full"), work_folder(tmp_path, "s", "in use") as work:
        raise OutputError(f"{work}/c: is full")
    assert names(tmp_path) == ["a"]


def test_a_lock_of_another_process_is_left_to_it(holder):
    path, process = holder
    with pytest.raises(OutputError, match=r"^maps: in use$"), locked(path, "maps: in use"):
        raise AssertionError("never comes here")
    assert path.exists()
    process.stdin.close()
    process.wait()
    assert not path.parent.exists()


def test_who_waits_gets_the_lock_though_file_and_folder_go(holder, caplog):
    path, process = holder
    caplog.set_level("INFO")
    threading.Timer(0.3, process.stdin.close).start()
    with locked(path, "maps: waiting", wait=True):
        assert names(path.parent) == [".lock"]
        assert process.wait() == 0
    assert caplog.messages == ["maps: waiting"]
    assert names(path.parent.parent) == []


def test_the_lock_of_a_killed_process_is_taken_over(holder):
    path, process = holder
    process.kill()
    process.wait()
    assert path.exists()
    with locked(path, "busy"):
        pass
    assert names(path.parent) == []  # which was there before


def test_of_the_folders_made_for_a_lock_those_in_use_stay(tmp_path):
    with pytest.raises(DataError), whole_folder(tmp_path / "a" / "b" / "store"):
        raise DataError("refused")
    assert names(tmp_path) == []
    (tmp_path / "old").mkdir()
    with pytest.raises(DataError), locked(tmp_path / "old" / "new" / "maps" / ".lock", "busy"):
        (tmp_path / "old" / "new" / "mine").write_text("")
        raise DataError("refused")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["old", "old/new", "old/new/mine"]
    with pytest.raises(DataError), locked(tmp_path / "old" / ".lock", "busy"):
        raise DataError("refused")
    assert (tmp_path / "old").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot be made .*choose another place"),
        whole_folder(tmp_path / "file" / "a"),
    ):
        raise AssertionError("never comes here")
    with pytest.raises(OSError), locked(tmp_path / "file" / ".lock", "busy"):
        raise AssertionError("never comes here")
    assert names(tmp_path) == ["file"]
