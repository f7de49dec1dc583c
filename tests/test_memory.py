import subprocess
import sys

import pytest

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
