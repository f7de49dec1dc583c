import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from glacier_fastai.cli import _show
from glacier_fastai.errors import TrainingError
from glacier_fastai.terminal import in_terminal, launched, progress, show_messages


@pytest.mark.parametrize(
    ("rank", "size", "found"),
    [(None, None, (0, 1)), ("", None, (0, 1)), ("x", None, (0, 1)), ("3", None, (0, 1)), ("1", "2", (1, 2))],
)
def test_a_launch_is_one_that_numbers_its_processes(monkeypatch, rank, size, found):
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert launched() == found


@pytest.mark.parametrize(("rank", "size"), [("0", "0"), ("5", "2"), ("-1", "1"), ("x", "2"), ("0", "9" * 5000)])
def test_a_launch_that_cannot_be_is_refused(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(TrainingError, match="RANK=.*no launch numbers its processes so; unset both to work alone"):
        launched()


ARENAS = """
import ctypes, sys, threading
from glacier_fastai.terminal import one_arena

if sys.argv[2] == "one":
    one_arena()
libc, barrier = ctypes.CDLL(None), threading.Barrier(4)
libc.fopen.restype = ctypes.c_void_p

def take():
    barrier.wait()
    libc.malloc(1000)
    barrier.wait()

threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has arenas")
def test_threads_share_one_arena_where_they_would_have_several(tmp_path):
    found = {}
    for how in ("one", "several"):
        path = tmp_path / how
        subprocess.run([sys.executable, "-c", ARENAS, path, how], check=True)
        found[how] = path.read_text().count("<heap nr=")
    assert found["one"] == 1 < found["several"]


def test_a_notebook_is_no_terminal_though_its_commands_see_one(monkeypatch):
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert not in_terminal()  # pytest catches what is said
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert in_terminal()
    monkeypatch.setenv("JPY_PARENT_PID", "7")
    assert not in_terminal()


@pytest.fixture
def shown():
    """Messages on stderr, as commands show them; taken away again."""
    root = logging.getLogger("glacier_fastai")
    before, level = list(root.handlers), root.level
    root.handlers.clear()
    root.setLevel(logging.NOTSET)
    yield show_messages
    root.handlers[:] = before
    root.setLevel(level)


def test_a_library_is_silent_until_messages_are_asked_for(shown, capsys, monkeypatch):
    log = logging.getLogger("glacier_fastai.somewhere")
    log.info("nobody asked")
    shown()
    shown()
    log.info("once")
    assert capsys.readouterr().err == "once\n"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown()
    log.info("of another process")
    log.error("but errors are")
    assert capsys.readouterr().err == "but errors are\n"


def test_a_terminal_is_shown_no_control_characters(shown, capsys, monkeypatch):
    shown()
    logging.getLogger("glacier_fastai.somewhere").info("of a\x1b[2J\x07\nsecond line")
    assert capsys.readouterr().err == "of a\\x1b[2J\\x07\nsecond line\n"
    for terminal, line in ((True, "a\\x1b\\nb.tif\n"), (False, "a\x1b\nb.tif\n")):  # programs take names as they are
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        _show("a\x1b\nb.tif")
        assert capsys.readouterr().out == line


def test_without_a_terminal_a_line_stands_in_for_the_bar(monkeypatch, caplog):
    monkeypatch.setattr("glacier_fastai.terminal.EVERY", -1)
    with caplog.at_level(logging.INFO, "glacier_fastai"), progress("tiles") as show:
        show(1200, 5000)
        show(7, None)
    assert caplog.messages == ["tiles: 1,200 of 5,000", "tiles: 7"]


def test_what_gdal_says_in_another_encoding_is_no_noise(tmp_path, capfd):
    show_messages()
    said = SimpleNamespace(object="rasterio._env.log_error", exc_type=UnicodeDecodeError, exc_value=None)
    sys.unraisablehook(SimpleNamespace(**vars(said), exc_traceback=None, err_msg="x"))
    sys.excepthook(UnicodeDecodeError, UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"), None)
    assert capfd.readouterr().err == ""
