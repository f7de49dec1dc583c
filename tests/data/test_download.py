import gc
import gzip
import hashlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server import Answer, Mirror, dripping

from glacier_fastai.data import download
from glacier_fastai.data.download import RemoteStream, fetch, members
from glacier_fastai.errors import DataError, OutputError

CONTENT = b"\x1f\x8b" + random.Random(1).randbytes(100_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
OPTIONS = {"timeout": 0.3, "waits": (0,) * 8}
PAGE = b"<html>Please accept the terms of Hotel Everest</html>"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def mirror():
    """Start mirrors, `mirror(*answers)` of CONTENT or of `content=`, all closed at the end."""
    with ExitStack() as stack:

        def start(*answers, content=CONTENT, **kwargs):
            one = Mirror(content, *answers, **kwargs)
            stack.callback(one.close)
            return one

        yield start


@pytest.fixture
def path(tmp_path):
    return tmp_path / "patches.tar.gz"


@pytest.fixture
def partial(tmp_path):
    return tmp_path / ".patches.tar.gz.partial"


def get(path, *mirrors, sha=SHA, **kwargs):
    return fetch([m.url for m in mirrors], path, sha, **(OPTIONS | kwargs))


def read(*mirrors, sha=SHA, **kwargs):
    with RemoteStream([m.url for m in mirrors], sha, **(OPTIONS | kwargs)) as stream:
        content = stream.read()
        stream.verify()
    return content


# --- downloads


def test_a_file_is_fetched_and_nothing_else_stays(path, mirror):
    one = mirror()
    assert get(str(path), one) == path
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == [path.name]
    assert len(one.requests) == 1
    get(path, one)
    assert len(one.requests) == 1, "what is there is not asked for again"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(2, 60_000), later=st.lists(st.integers(1, 60_000), max_size=12), two=st.booleans())
def test_through_drops_each_byte_is_asked_for_once(tmp_path, first, later, two):
    wanted = [0]
    for n in (first, *later):
        if wanted[-1] + n < len(CONTENT):
            wanted.append(wanted[-1] + n)
    drops = [Answer(drop=b - a) for a, b in zip(wanted, wanted[1:], strict=False)]
    mirrors = [Mirror(CONTENT, *drops[k :: 1 + two]) for k in range(1 + two)]
    try:
        path = tmp_path / "file"
        get(path, *mirrors)
        assert path.read_bytes() == CONTENT
        path.unlink()
        assert sorted(s for m in mirrors for s in m.starts) == wanted
        assert [len(m.starts) for m in mirrors] == [len(wanted[k :: 1 + two]) for k in range(1 + two)]
    finally:
        for m in mirrors:
            m.close()


TROUBLE = {
    "reset": Answer(drop=1000, reset=True),
    "reset at once": Answer(drop=0, reset=True),
    "stall": Answer(stall=1000),
    "stall at once": Answer(stall=0),
    "500": Answer(status=500, body=b""),
    "503 with a page": Answer(status=503, body=PAGE, headers={"Content-Type": "text/html"}),
    "429": Answer(status=429, body=b""),
    "one byte": Answer(drop=1),
    "no byte of another length": Answer(body=b"", headers={"Content-Length": 77}),
    "less than announced": Answer(body=CONTENT[:5000], headers={"Content-Length": len(CONTENT)}),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
@pytest.mark.parametrize("way", ["fetch", "stream"])
def test_trouble_that_passes_is_waited_out_on_the_only_mirror(path, mirror, trouble, way):
    one = mirror(trouble)
    assert (get(path, one).read_bytes() if way == "fetch" else read(one)) == CONTENT
    assert len(one.requests) == 2


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_trouble_that_passes_turns_to_the_next_mirror(mirror, trouble):
    one, two = mirror(always=trouble), mirror()
    assert read(one, two) == CONTENT
    assert (len(one.requests), len(two.requests)) == (1, 1)


def test_trouble_in_the_middle_goes_on_at_the_byte(mirror):
    one = mirror(
        Answer(drop=7000), TROUBLE["429"], Answer(stall=70_000), Answer(body=b"", status=500), Answer(drop=5000)
    )
    assert read(one) == CONTENT
    stalled = 7000 + download.PACKET  # of what a stall cuts off, less than a packet is lost
    assert one.starts == [0, 7000, 7000, stalled, stalled, stalled + 5000]


def test_a_mirror_that_brought_much_is_asked_again_first(mirror, monkeypatch):
    monkeypatch.setattr(download, "WORTH", 5000)
    one, two = mirror(Answer(drop=6000), Answer(drop=10)), mirror()
    assert read(one, two) == CONTENT
    assert (one.starts, two.starts) == ([0, 6000], [6010])


def test_waits_grow_and_end_without_progress_and_start_anew_with_it(mirror, monkeypatch):
    slept = []
    monkeypatch.setattr(download.time, "sleep", slept.append)
    busy = Answer(status=503, body=b"")
    one = mirror(busy, busy, Answer(drop=10), busy, Answer(drop=10), always=busy)
    said = r"^patches.tar.gz: no mirror delivers it \(http://127.*gz: HTTP 503 Service Unavailable\); check the network"
    with RemoteStream([one.url], waits=(1, 2, 4, 8)) as stream:
        with pytest.raises(DataError, match=said):
            stream.read()
        with pytest.raises(ValueError, match="patches.tar.gz: read after it was closed"):
            stream.read(1)  # not an end of the file
    assert slept == [1, 2, 1, 2, 1, 2, 4, 8]
    assert stream.position == 20


LIES = {
    "404": (Answer(status=404, body=PAGE), "HTTP 404 Not Found"),
    "403": (Answer(status=403, body=b""), "HTTP 403 Forbidden"),
    "web page": (Answer(body=PAGE, headers={"Content-Type": "text/html; charset=utf-8"}), "answers with a web page"),
    "web page in disguise": (Answer(body=PAGE), "SHA-256 is"),
    "no length": (Answer(headers={"Content-Length": None}), "does not tell how long"),
    "no content": (Answer(status=204, body=b""), "HTTP 204 No Content"),
    "shorter": (Answer(body=CONTENT[:-1]), "SHA-256 is"),
}


@pytest.mark.parametrize(("lie", "why"), LIES.values(), ids=LIES)
def test_a_mirror_that_cannot_be_right_is_given_up_at_once(path, partial, mirror, lie, why):
    one, two = mirror(always=lie), mirror()
    get(path, one, two)
    assert path.read_bytes() == CONTENT
    assert (len(one.requests), two.starts) == (1, [0])
    path.unlink()
    with pytest.raises(DataError, match=re.escape(why)) as err:
        get(path, one)
    assert one.url in str(err.value) and "start again" in str(err.value)
    assert "\n" not in str(err.value)
    assert not path.exists() and not partial.exists()


MIDDLE_LIES = {
    "starts elsewhere": (
        Answer(headers={"Content-Range": "bytes 0-100001/100002"}),
        "asked for bytes from 4000 on, its Content-Range is bytes 0-100001/100002",
    ),
    "other total": (
        Answer(headers={"Content-Range": "bytes 4000-200000/200001"}),
        "the file there has 200001 bytes, not 100002",
    ),
    "no range": (Answer(headers={"Content-Range": None}), "its Content-Range is missing"),
    "unit": (Answer(headers={"Content-Range": "lines 4000-5000/*"}), "its Content-Range is lines 4000-5000/"),
    "web page": (Answer(body=PAGE, headers={"Content-Type": "text/html"}), "answers with a web page"),
    "ends earlier": (Answer(status=416, body=b""), "HTTP 416"),
}


@pytest.mark.parametrize(("lie", "why"), MIDDLE_LIES.values(), ids=MIDDLE_LIES)
def test_a_mirror_that_cannot_go_on_is_given_up_and_nothing_of_it_kept(path, partial, mirror, lie, why, caplog):
    one, two, three = mirror(Answer(drop=4000)), mirror(always=lie), mirror()
    get(path, one, two, three)
    assert path.read_bytes() == CONTENT
    assert (one.starts, two.starts, three.starts) == ([0], [4000], [4000])
    assert any(re.fullmatch(rf"{re.escape(two.url)}: .*{re.escape(why)}.*; given up", m) for m in caplog.messages)
    path.unlink()
    with pytest.raises(DataError, match=re.escape(why)):
        get(path, mirror(Answer(drop=4000), always=lie))
    assert partial.read_bytes() == CONTENT[:4000]


def test_all_mirrors_are_named_with_their_reasons(mirror):
    one, two, three = mirror(always=LIES["404"][0]), mirror(always=LIES["web page"][0]), mirror(always=Answer(stall=0))
    with pytest.raises(DataError) as err:
        read(one, two, three, waits=(0,))
    for m, why in ((one, "HTTP 404"), (two, "answers with a web page"), (three, "timed out")):
        assert re.search(rf"{m.url}: [^;]*{why}", str(err.value))
    assert (len(one.requests), len(two.requests), len(three.requests)) == (1, 1, 2)


def test_nobody_there(mirror):
    gone = mirror()
    gone.close()
    with pytest.raises(DataError, match="Connection refused.*check the network and start again"):
        read(gone)


def test_a_mirror_without_ranges_begins_anew_and_what_is_here_is_skipped(path, mirror):
    plain = Answer(ranges=False)
    one, two = mirror(Answer(drop=4000)), mirror(plain)
    assert read(one, two) == CONTENT
    assert (one.starts, two.starts) == ([0], [4000])
    long = CONTENT * 30
    lone = mirror(Answer(drop=2_500_000), plain, content=long)
    get(path, lone, sha=hashlib.sha256(long).hexdigest())
    assert path.read_bytes() == long


def test_more_bytes_than_announced_are_not_read(mirror):
    one = mirror(Answer(body=CONTENT + b"more", headers={"Content-Length": len(CONTENT)}))
    assert read(one) == CONTENT
    two = mirror(Answer(drop=100), Answer(body=CONTENT[100:] + b"more", headers={"Content-Length": len(CONTENT)}))
    assert read(two) == CONTENT


def test_redirects_are_followed_with_the_range(mirror):
    target = mirror(Answer(drop=4000))
    away = Answer(status=302, body=b"", headers={"Location": target.url})
    assert read(mirror(always=away)) == CONTENT
    assert target.starts == [0, 4000]


def test_nothing_is_packed_or_unpacked_on_the_way(mirror):
    packed = gzip.compress(b"content" * 1000)
    one = mirror(content=packed, always=Answer(headers={"Content-Encoding": "gzip"}))
    assert read(one, sha=hashlib.sha256(packed).hexdigest()) == packed
    assert one.requests[0]["Accept-Encoding"] == "identity"
    assert one.requests[0]["Cache-Control"] == "no-transform"


# --- interruptions


def test_a_folder_where_the_file_should_be_is_noticed_at_the_start(path, mirror):
    one = mirror()
    path.mkdir()
    with pytest.raises(OutputError, match=f"^{path}: is no file; remove it"):
        get(path, one)
    assert not one.requests and os.listdir(path.parent) == [path.name]


def test_a_killed_download_goes_on_and_meanwhile_keeps_others_out(path, partial, mirror):
    one = mirror(Answer(stall=70_000))
    code = f"from glacier_fastai.data.download import fetch; fetch(['{one.url}'], '{path}', '{SHA}', timeout=60)"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        ended = time.monotonic() + 30
        while not (partial.exists() and partial.stat().st_size == download.PACKET):
            assert child.poll() is None and time.monotonic() < ended
            time.sleep(0.01)
        with pytest.raises(OutputError, match=f"^{path}: another process is downloading it; wait until it is done"):
            get(path, one)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    get(path, one)
    assert path.read_bytes() == CONTENT
    assert one.starts == [0, download.PACKET]
    assert os.listdir(path.parent) == [path.name]


def test_killed_just_before_it_got_its_name(path, partial, mirror):
    one = mirror()
    partial.write_bytes(CONTENT)
    get(path, one)
    assert path.read_bytes() == CONTENT
    assert not one.requests and not partial.exists()


@pytest.mark.parametrize(
    "junk", [CONTENT[:500] + b"?", CONTENT + b"?", b"?" * len(CONTENT)], ids=["x", "long", "equal"]
)
def test_a_spoilt_partial_is_noticed_and_blamed_on_nobody(path, partial, mirror, junk):
    one = mirror()
    partial.write_bytes(junk)
    get(path, one)
    assert path.read_bytes() == CONTENT
    assert one.starts == [len(junk), 0]


def test_a_mirror_that_ends_earlier_does_not_spoil_the_partial(path, partial, mirror):
    short, one = mirror(content=CONTENT[:50]), mirror()
    partial.write_bytes(CONTENT[:4000])
    get(path, short, one)
    assert path.read_bytes() == CONTENT
    assert one.starts == [4000]


# --- wrong bytes

WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])


def test_a_wrong_file_is_fetched_anew_from_the_next_mirror(path, partial, mirror):
    one, two = mirror(content=WRONG), mirror()
    get(path, one, two)
    assert path.read_bytes() == CONTENT
    assert (one.starts, two.starts) == ([0], [0])


def test_if_all_are_wrong_the_last_is_named_and_nothing_kept(path, partial, mirror):
    one, two = mirror(content=WRONG), mirror(content=WRONG)
    got = hashlib.sha256(WRONG).hexdigest()
    with pytest.raises(DataError, match=rf"SHA-256 is {got}, not {SHA} \(from {two.url}\); .*start again later"):
        get(path, one, two)
    assert (one.starts, two.starts) == ([0], [0])
    assert not path.exists() and not partial.exists()


def test_after_a_wrong_mix_another_mirror_brings_all_of_it(path, mirror):
    right, wrong, third = mirror(Answer(drop=4000)), mirror(content=WRONG), mirror()
    get(path, right, wrong, third)
    assert path.read_bytes() == CONTENT
    assert (right.starts, wrong.starts, third.starts) == ([0], [4000], [0])


def test_the_stream_tells_of_wrong_bytes_at_the_end(mirror):
    one = mirror(content=WRONG)
    with RemoteStream([one.url], SHA, **OPTIONS) as stream:
        assert WRONG.startswith(stream.read(1000))
        with pytest.raises(DataError, match=f"^patches.tar.gz: SHA-256 is .*, not {SHA} .from {one.url}.; discard"):
            stream.verify()
    with RemoteStream([one.url], **OPTIONS) as stream:
        stream.verify()
        assert stream.position == len(WRONG), "without a SHA-256 only the length is looked at"
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


# --- disks


def test_a_disk_that_fills_up_keeps_the_partial(path, partial, mirror):
    one = mirror()
    code = f"""if True:
        import resource, sys
        from glacier_fastai.data.download import fetch
        from glacier_fastai.errors import OutputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        try:
            fetch(['{one.url}'], '{path}', '{SHA}')
        except OutputError as err:
            sys.exit(str(err))"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = f"{partial}: File too large, {len(CONTENT) - 30_000} more bytes are needed; make room and start again"
    assert child.returncode == 1 and child.stderr.startswith(said)
    assert partial.read_bytes() == CONTENT[:30_000]
    get(path, one)
    assert path.read_bytes() == CONTENT
    assert one.starts == [0, 30_000]


def test_a_file_that_cannot_fit_is_refused_at_the_start(path, partial, mirror, monkeypatch):
    partial.write_bytes(CONTENT[:2000])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda p: usage(10**6, 10**6 - 98_001, 98_001))
    with pytest.raises(
        OutputError, match=f"^{partial}: No space left on device, 98002 more bytes are needed; make room"
    ):
        get(path, mirror())
    assert partial.read_bytes() == CONTENT[:2000]


def test_a_folder_that_cannot_be_made(tmp_path, mirror):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written \(.*\); choose another folder"):
        get(tmp_path / "file" / "sub" / "x.tar.gz", mirror())


# --- progress


def test_progress_counts_bytes_and_trouble_is_logged(path, partial, mirror, caplog):
    caplog.set_level("INFO")
    calls = []
    partial.write_bytes(CONTENT[:500])
    busy = [Answer(status=503, body=b"")] * 2
    get(path, mirror(Answer(drop=5000), *busy), progress=lambda *at: calls.append(at))
    assert calls[-1] == (len(CONTENT), len(CONTENT)) and calls[0][0] > 500
    assert calls == sorted(calls)
    assert any("going on in 0 s, after" in m and "HTTP 503 Service Unavailable" in m for m in caplog.messages)


# --- members


def tar(*entries, **kwargs):
    """Return a tar of (name, content) and TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **kwargs) as file:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                file.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                file.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


def special(name, kind=tarfile.REGTYPE, link="", size=0, **pax):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = kind, link, size, pax
    return info


FILES = {f"data/slices/s_{i}.npy": np.random.default_rng(i).bytes(3000 * i) for i in range(40)}


def contents(archive, wanted=lambda name: True, **kwargs):
    return {name: file.read() for name, file in members(archive, wanted, **kwargs)}


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gz", "plain"])
@pytest.mark.parametrize("where", ["path", "buffer", "file"])
def test_wanted_files_come_out_of_an_archive(path, pack, where):
    path.write_bytes(pack(tar(special("data", tarfile.DIRTYPE), *FILES.items())))
    wanted = {k: v for k, v in FILES.items() if "3" in k}
    if where == "path":
        assert contents(path, wanted.__contains__) == wanted
    elif where == "buffer":
        assert contents(io.BytesIO(path.read_bytes()), wanted.__contains__) == wanted
    else:
        with open(path, "rb") as file:
            assert contents(file, wanted.__contains__) == wanted
            gc.collect()
            assert not file.closed


def test_an_archive_streams_through_drops_onto_no_disk(mirror):
    packed = gzip.compress(tar(*FILES.items()))
    one, two = (
        mirror(*[Answer(drop=n), Answer(stall=9)], *[Answer(drop=n)] * 9, content=packed) for n in (9999, 12345)
    )
    with RemoteStream([one.url, two.url], hashlib.sha256(packed).hexdigest(), **OPTIONS) as stream:
        assert contents(stream) == FILES
        stream.verify()
    starts = one.starts + two.starts
    assert len(set(starts)) == len(starts) - 2 > 19, "but for the two stalls, no byte is asked for again"
    with RemoteStream([one.url], **OPTIONS) as stream, tarfile.open(fileobj=stream, mode="r|gz") as file:
        assert [m.name for m in file] == list(FILES)


def test_arrays_are_read_from_members():
    buffer, array = io.BytesIO(), np.arange(10_000, dtype=np.float32).reshape(100, 100)
    np.save(buffer, array)
    archive = io.BytesIO(gzip.compress(tar(("a.npy", buffer.getvalue()))))
    for _, file in members(archive, lambda name: True):
        np.testing.assert_array_equal(np.lib.format.read_array(file), array)


def test_names_are_normalised_and_what_is_no_file_is_passed_over():
    entries = (
        ("./a//b/./c.npy", b"1"),
        special("a/link.npy", tarfile.SYMTYPE, "../a/b/c.npy"),
        special("a/hard.npy", tarfile.LNKTYPE, "a/b/c.npy"),
        special("a/null", tarfile.CHRTYPE),
        special("a/disk", tarfile.BLKTYPE),
        special("a/pipe", tarfile.FIFOTYPE),
        ("a/...", b"2"),
    )
    assert contents(io.BytesIO(tar(*entries))) == {"a/b/c.npy": b"1", "a/...": b"2"}


HOSTILE = [
    special("/etc/passwd"),
    special("../up.npy"),
    special("a/../../up.npy"),
    special("a/../b.npy"),
    special("..\\up.npy"),
    special("a\\..\\..\\up.npy"),
    special("C:\\x.npy"),
    special("c:x.npy"),
    special("\\\\host\\share\\x.npy"),
    special("a/link", tarfile.SYMTYPE, "/etc/passwd"),
    special("a/link", tarfile.SYMTYPE, "../../up"),
    special("a/link", tarfile.SYMTYPE, "b/../../../a"),
    special("a/link", tarfile.SYMTYPE, "C:\\x"),
    special("link", tarfile.SYMTYPE, ".."),
    special("a/hard", tarfile.LNKTYPE, "../up"),
    special("a/hard", tarfile.LNKTYPE, "/etc/passwd"),
    special("/dev/sda", tarfile.BLKTYPE),
    special("../dev/null", tarfile.CHRTYPE),
]


@pytest.mark.parametrize("member", HOSTILE, ids=lambda m: f"{m.name} {m.linkname}")
def test_a_member_that_leads_outside_is_refused_by_name(path, member):
    path.write_bytes(gzip.compress(tar(("a.npy", b"1"), member)))
    said = f"{path}: member {member.name!r} leads outside the archive; do not use this file"
    with pytest.raises(DataError, match=re.escape(said)):
        contents(path, lambda name: False)


def at(content, position, new):
    return content[:position] + new + content[position + len(new) :]


PLAIN = tar(*FILES.items())
PACKED = gzip.compress(PLAIN, mtime=0)
PADDED = gzip.compress(PLAIN + bytes(-len(PLAIN) % (1 << 22)), mtime=0)
DAMAGED = {
    "gz cut short": PACKED[: len(PACKED) // 2],
    "gz without its end": PACKED[:-1],
    "gz without its checksum": PACKED[:-8],
    "gz header only": PACKED[:5],
    "gz checksum": at(PACKED, len(PACKED) - 8, b"????"),
    "gz checksum after padding": at(PADDED, len(PADDED) - 8, b"????"),
    "gz middle": at(PACKED, len(PACKED) // 2, bytes(100)),
    "gz then junk": PACKED + b"junk",
    "no tar in it": gzip.compress(b"x" * 5000),
    "empty": b"",
    "page": PAGE * 100,
    "tar cut in a file": PLAIN[: len(PLAIN) // 2],
    "tar cut before a header": PLAIN[:512],
    "tar cut in a header": PLAIN[:700],
    "tar header": at(PLAIN, 512 + 148, b"9999"),
    "size beyond all": gzip.compress(tar(("a", b"1"), special("b", size=1 << 60), format=tarfile.GNU_FORMAT)),
    "size beyond the end": gzip.compress(tar(special("b", size=1 << 38), format=tarfile.GNU_FORMAT)),
    "size below 0": tar(("a", b"1"), special("b", size=-1024), format=tarfile.GNU_FORMAT),
    "size in pax": tar(("a", b"1"), special("b", size=1 << 60), format=tarfile.PAX_FORMAT),
    "long name": tar(("a", b"1"), special("b", tarfile.GNUTYPE_LONGNAME, size=1 << 30)) + bytes(1 << 21),
    "pax numbers": tar(("a", b"1"), special("b", **{"GNU.sparse.map": "x,y"}), format=tarfile.PAX_FORMAT),
    "headers of headers": b"".join([special("x", tarfile.XGLTYPE).tobuf(tarfile.GNU_FORMAT)] * 3000),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_damaged_archive_is_one_line_whether_or_not_its_files_are_wanted(path, content, wanted):
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"^.*patches.tar.gz: (cut short or damaged \(.+\); remove it|member .* bytes, allowed)"
    ):
        contents(path, lambda name: wanted)


def test_a_claim_of_terabytes_is_refused_or_read_as_far_as_it_goes():
    archive = gzip.compress(tar(("a", b"1"), special("big.npy", size=1 << 39), format=tarfile.GNU_FORMAT))
    with pytest.raises(DataError, match=rf"^archive: member 'big.npy' has {1 << 39} bytes, allowed are {1 << 30};"):
        contents(io.BytesIO(archive))
    files = members(io.BytesIO(archive), lambda name: name == "big.npy", limit=1 << 40)
    name, file = next(files)
    assert (name, file.read(512)) == ("big.npy", bytes(512))
    with pytest.raises(DataError, match="cut short or damaged"):
        file.read(1 << 24)


def test_holes_of_a_sparse_file_are_zeros_and_count():
    pax = {"GNU.sparse.map": "4,2", "GNU.sparse.size": "10"}
    info = special("s.npy", size=2, **pax)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(info, io.BytesIO(b"ab"))
    assert contents(io.BytesIO(buffer.getvalue())) == {"s.npy": b"\0\0\0\0ab\0\0\0\0"}
    with pytest.raises(DataError, match=r"member 's.npy' has 10 bytes, allowed are 9; wrong file\?"):
        contents(io.BytesIO(buffer.getvalue()), limit=9)


def test_a_member_can_be_read_only_until_the_next():
    files = members(io.BytesIO(PLAIN), lambda name: True)
    _, first = next(files)
    next(files)
    with pytest.raises(ValueError, match="closed"):
        first.read()
    files.close()


def test_no_such_archive(path):
    with pytest.raises(DataError, match=f"^{path}: no such file$"):
        contents(path)


def test_the_import_is_light():
    code = (
        "import sys, glacier_fastai.data.download; print({'torch', 'numpy', 'rich', 'requests'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- mirrors and archives that mean harm

HARM = {
    "redirect elsewhere": Answer(status=302, body=b"", headers={"Location": "ftp://127.0.0.1/f"}),
    "redirect to a file": Answer(status=302, body=b"", headers={"Location": "file:///etc/hostname"}),
    "redirect to no address": Answer(status=302, body=b"", headers={"Location": "http://[::1"}),
    "length of many digits": Answer(headers={"Content-Length": "9" * 5000}),
    "length beyond the disk": Answer(headers={"Content-Length": 10**15}),
    "length of another file": Answer(body=CONTENT * 2),
    "length beyond what is known": Answer(headers={"Content-Length": 10**9}),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_mirror_that_means_harm_is_given_up_and_the_next_one_asked(path, mirror, harm):
    sizes = range(100_000, 100_100) if harm is HARM["length beyond what is known"] else None
    get(path, mirror(always=harm), mirror(), size=sizes)
    assert path.read_bytes() == CONTENT


DRIPS = {
    "headers": b"HTTP/1.1 200 OK\r\nX: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 100002\r\n\r\n",
    "length of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 100002\r\n\r\n1;",
}


@pytest.mark.parametrize("begins", DRIPS.values(), ids=DRIPS)
def test_bytes_that_drip_count_as_a_stall(mirror, begins):
    with dripping(begins) as url:
        began = time.monotonic()
        with RemoteStream([f"{url}/f", mirror().url], SHA, **OPTIONS) as stream:
            assert stream.read() == CONTENT
        assert time.monotonic() - began < 10


def test_what_is_said_is_one_short_printable_line(path, mirror):
    said = "\x85[2J" + "x" * 60_000
    with pytest.raises(DataError) as err:
        get(path, mirror(always=Answer(status=206, headers={"Content-Range": said})))
    assert len(str(err.value)) < 600 and str(err.value).isprintable()


def test_a_link_in_place_of_what_is_here_is_not_written_to(path, partial, mirror):
    mine = path.with_name("mine")
    for link in (os.symlink, os.link):
        mine.write_bytes(CONTENT[:1000])
        link(mine, partial)
        get(path, mirror())
        assert mine.read_bytes() == CONTENT[:1000] and path.read_bytes() == CONTENT
        path.unlink()
        mine.unlink()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_of_an_archive_are_bounded(kind):
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 1 << 30
    file = io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))
    with pytest.raises(DataError, match="a header of 1073741824 bytes, allowed are 1048576"):
        list(members(file, lambda name: True))


def test_an_archive_with_holes_is_refused_at_once(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(CONTENT)
    os.truncate(path, 2**40)
    with pytest.raises(DataError, match=r"of its 1,099,511,627,776 bytes only .* are on the disk; download it again"):
        next(members(path, lambda name: True))


@pytest.mark.parametrize(("zeros", "fine"), [(10_240, True), (1 << 26, False)])
def test_what_stands_behind_the_end_of_an_archive_is_bounded(zeros, fine):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("a")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"hi"))
    packed = io.BytesIO(gzip.compress(file.getvalue() + bytes(zeros)))
    if fine:
        assert [name for name, _ in members(packed, lambda name: True)] == ["a"]
    else:
        with pytest.raises(DataError, match="goes on after the end of its files"):
            list(members(packed, lambda name: True))
