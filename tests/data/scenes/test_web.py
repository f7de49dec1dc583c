import datetime
import re
import socket
import ssl
import threading

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from scenes import BANDS, made_up, write_raster
from server import dripping
from web import Answer, Web

from glacier_fastai.data.scenes import web
from glacier_fastai.data.scenes.address import Address, named
from glacier_fastai.data.scenes.opening import open_scene, scene_name
from glacier_fastai.data.scenes.raster import open_raster
from glacier_fastai.data.scenes.web import text_at
from glacier_fastai.errors import DataError
from glacier_fastai.predict.scenes import find_scenes

PARTS = {"headers": b"HTTP/1.1 206 OK\r\nX: ", "body": b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-16383/99999\r\n\r\n"}
SECRETS = "?sig=SECRET&user=SECRET"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name, value in {"LOW_SPEED_TIME": 0.5, "CONNECTTIMEOUT": 2, "RETRY_DELAY": 0.01, "MAX_RETRY": 2}.items():
        monkeypatch.setenv(f"GDAL_HTTP_{name}", str(value))
    monkeypatch.setattr(web, "_cache", web._Cache())


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A tiled scene of ten bands, those of the models among them, and its path."""
    path = tmp_path_factory.mktemp("web") / "scene.tif"
    rng = np.random.default_rng(0)
    values = rng.integers(1, 9000, (10, 512, 512)).astype("uint16")
    profile = {"driver": "GTiff", "count": 10, "height": 512, "width": 512, "dtype": "uint16", "crs": "EPSG:32645"}
    place = {"transform": from_origin(500_000, 3_100_000, 30, 30), "nodata": 0, "interleave": "band"}
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    with rasterio.open(path, "w", **profile, **place, **tiles) as file:
        file.write(values)
        file.descriptions = ("blue", "green", "red", "nir", "swir1", "swir2", "thermal", "pan", "elevation", "slope")
    return path


def read_all(scene):
    return scene.read_window(range(len(scene.bands)), 0, 0, scene.height, scene.width)


def read(address, wanted=None, **how):
    with open_scene(address, wanted, **how) as scene:
        scene.look()
        return read_all(scene)


def test_a_scene_is_the_same_by_http(big):
    with Web({"a/scene.tif": big.read_bytes()}) as server, open_scene(big) as here:
        with open_scene(f"{server.url}/a/scene.tif{SECRETS}") as there:
            assert there.bands == here.bands and there.transform == here.transform and there.crs == here.crs
            assert there.scaling == here.scaling and there.profile == here.profile
            for a, b in zip(read_all(here), read_all(there), strict=True):
                np.testing.assert_array_equal(a, b)
            assert there.files == [Address(f"{server.url}/a/scene.tif{SECRETS}")]
        assert {path for path, _ in server.asked} == {"/a/scene.tif"}  # nothing beside it


def test_only_what_is_wanted_is_sent_and_once(big):
    with Web({"scene.tif": big.read_bytes()}) as server:
        for _ in range(2):  # as a prediction does
            numbers, _ = read(f"{server.url}/scene.tif", ["green", "ndsi"])
        assert len(numbers) == 2 and 0.19 < server.sent / big.stat().st_size < 0.28


@pytest.mark.slow
def test_broken_connections_go_on_where_they_broke(big):
    def plan(number, path, start):
        if number == 5:
            return Answer(stall=700)
        return [None, Answer(drop=1500), Answer(status=503, body=b""), Answer(drop=0)][number % 4]

    with Web({"scene.tif": big.read_bytes()}, plan) as server:
        numbers, _ = read(f"{server.url}/scene.tif")
        np.testing.assert_array_equal(numbers, read(big)[0])
        assert server.sent < 1.3 * big.stat().st_size


def test_the_format_decides(tmp_path):
    values = made_up(64, 64, nodata=False)[0][:1].astype("uint8")
    profile = {"count": 1, "height": 64, "width": 64, "dtype": "uint8", "crs": "EPSG:32645"}
    profile |= {"transform": from_origin(500_000, 3_100_000, 30, 30), "REVERSIBLE": "YES"}
    files = {}
    for driver in ("JP2OpenJPEG", "PNG"):
        with rasterio.open(tmp_path / driver, "w", driver=driver, QUALITY="100", **profile) as file:
            file.write(values)
        files[driver] = (tmp_path / driver).read_bytes()
    with Web(files) as server:
        for driver in files:
            with open_raster(named(f"{server.url}/{driver}")) as raster:
                np.testing.assert_array_equal(raster.read(), values)
    with Web({"s.png": files["PNG"][:-1]}) as server, pytest.raises(DataError, match=r"s\.png: cut short"):
        open_raster(named(f"{server.url}/s.png"))


def later(**answer):
    """Answer honestly at first, so that the file is opened."""
    return lambda number, path, start: Answer(**answer) if start > 2**16 else None


def always(**answer):
    return lambda number, path, start: Answer(**answer)


VRT = b"<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>"
BAD = {
    "forbidden": (always(status=403, body=b""), "HTTP 403, it may not be read.*signature"),
    "asks who": (always(status=401, body=b""), "HTTP 401.*netrc"),
    "not there": (always(status=404, body=b""), "HTTP 404, there is no such file"),
    "gone": (always(status=410, body=b""), "HTTP 410"),
    "busy for good": (always(status=503, body=b""), "HTTP 503 Service Unavailable, 3 times in a row"),
    "busy later": (later(status=500, body=b""), "HTTP 500 Internal Server Error, 3 times in a row"),
    "page": (always(body=b"<!DOCTYPE html>", headers={"Content-Type": "text/html; charset=utf-8"}), "web page"),
    "page of no type": (always(status=200, ranges=False, body=b"\n<html>"), "web page"),
    "text": (always(ranges=False, body=b"hello"), "none of the rasters.*GeoTIFF"),
    "VRT": (always(ranges=False, body=VRT), "none of the rasters"),
    "no parts": (always(ranges=False), "sends no parts.*download it"),
    "no parts later": (later(ranges=False), "answers with all of it.*download it"),
    "other bytes": (later(headers={"Content-Range": "bytes 0-99/1000"}), "was asked for bytes.*bytes 0-99/1000"),
    "other length": (later(body=b"12345"), "was asked for bytes"),
    "nonsense": (always(headers={"Content-Range": "bytes x"}), "was asked for bytes"),
    "compressed": (always(headers={"Content-Encoding": "gzip"}), "compressed"),
    "empty": (lambda n, path, start: Answer(status=416, body=b""), "an empty file"),
    "cut short": (always(ranges=False, body=b"II*\0" + bytes(40)), "cut short or damaged"),
    "stalls": (always(stall=0), "nothing comes for 0.5 s, 3 times"),
    "stalls later": (later(stall=0), "nothing comes for 0.5 s"),
    "drops": (always(drop=0), "the connection breaks off, 3 times"),
    "drops later": (later(drop=0), "the connection breaks off"),
    "changed": (later(headers={"ETag": '"2"'}), "was changed while it was read"),
    "leads to a file": (always(status=302, body=b"", headers={"Location": "file:///etc/passwd"}), "https, or leads"),
    "leads nowhere": (always(status=302, body=b"", headers={"Location": "http://[::1"}), "https, or leads"),
    "leads to itself": (always(status=302, body=b"", headers={"Location": "/scene.tif"}), "without end"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_servers_are_one_line_without_secrets(big, case):
    plan, message = BAD[case]
    with Web({"scene.tif": big.read_bytes()}, plan) as server:
        url = f"{server.url}/scene.tif"
        with pytest.raises(DataError, match=f"^{re.escape(url)}: .*{message}") as caught:
            read(f"{url.replace('http://', 'http://me:SECRET@')}{SECRETS}")
    assert "SECRET" not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"
    read(big)  # others are read as before


def test_hosts_that_are_not_there():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        free = deaf.getsockname()[1]
    with pytest.raises(DataError, match="its host does not answer"):
        read(f"http://127.0.0.1:{free}/s.tif")
    with pytest.raises(DataError, match="name of its host is not known"):
        read("https://no-such-host.invalid/s.tif")
    for address in ("https://", "http://[::1/s.tif", "s3://", "http://x:99999999/a"):
        with pytest.raises(DataError, match="address"):
            read(address)
    for other in ("ftp://x.org/s.tif", "/vsigs/b/s.tif", "/vsicurl/file:///s.tif", "gs://b/s.tif"):
        with pytest.raises(DataError, match="only files on this disk"):
            read(other)


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_byte_now_and_then_is_given_up(part):
    with dripping(PARTS[part]) as url, pytest.raises(DataError, match="sends less than 1,000 bytes a second; try"):
        read(f"{url}/s.tif")


@pytest.mark.parametrize(
    "answer",
    [
        lambda number, path, start: Answer(drop=1),
        lambda number, path, start: Answer(body=b"x", headers={"Content-Range": f"bytes {start}-{start}/99999"}),
    ],
)
def test_a_byte_at_a_time_is_given_up_however_quick(big, monkeypatch, answer):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.1")
    with (
        Web({"s.tif": big.read_bytes()}, answer) as server,
        pytest.raises(DataError, match="(breaks off|sends a few bytes at a time), 3 times in a row"),
    ):
        read(f"{server.url}/s.tif")


def test_a_text_has_a_time_in_all(monkeypatch):
    monkeypatch.setattr(web, "TEXT", 0.5)
    for part in PARTS.values():
        with (
            dripping(part) as url,
            pytest.raises(DataError, match="sends what was asked for over more than 0.5 s; try again"),
        ):
            text_at(named(f"{url}/s.json"))


def test_a_certificate_that_nobody_knows(big, tmp_path):
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(1))
    pem = serialization.Encoding.PEM
    (tmp_path / "c.pem").write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem")
    with (
        Web({"scene.tif": big.read_bytes()}, context=context) as server,
        pytest.raises(DataError, match="certificate cannot be trusted.*REQUESTS_CA_BUNDLE"),
    ):
        read(f"{server.url}/scene.tif{SECRETS}")


def test_it_follows_where_a_link_leads(big):
    def plan(number, path, start):
        if path == "/download":
            return Answer(status=302, body=b"", headers={"Location": f"/scene.tif?sig={number}"})
        return Answer(status=403, body=b"") if number == 6 else None  # the signature is over: asked for a new one

    with Web({"scene.tif": big.read_bytes(), "download": b""}, plan) as server:
        np.testing.assert_array_equal(read(f"{server.url}/download")[0], read(big)[0])
        assert [path for path, _ in server.asked].count("/download") == 3  # two looks, and the new one


def test_a_file_per_band_and_a_mask(tmp_path):
    values = made_up(96, 80, nodata=False)[0]
    files = {
        f"p/{b}.tif": write_raster(tmp_path / f"{b}.tif", v[None]).read_bytes()
        for b, v in zip(BANDS, values, strict=True)
    }
    hidden = np.zeros((1, 48, 40), np.uint8)
    hidden[:, 10:20] = 1
    mask = write_raster(tmp_path / "m.tif", hidden, transform=from_origin(500_000, 3_100_000, 60, 60))
    names = {b: f"{b}.tif" for b in BANDS}
    with Web(files | {"m.tif": mask.read_bytes()}) as server:
        mine, known = read(f"{server.url}/p/{SECRETS}", bands=names, mask=f"{server.url}/m.tif{SECRETS}")
        np.testing.assert_array_equal(mine, read(tmp_path, bands=names)[0])
        np.testing.assert_array_equal(known, ~np.kron(hidden[0], np.ones((2, 2), bool)).astype(bool))
        with pytest.raises(DataError, match="/p/bleu.tif: HTTP 404"):
            read(f"{server.url}/p", bands={"blue": "bleu.tif"})


def test_a_mask_that_breaks_off_is_no_mask(big, tmp_path):
    hidden = np.random.default_rng(0).integers(0, 2, (1, 1024, 1024)).astype("uint8")
    mask = write_raster(tmp_path / "m.tif", hidden, transform=from_origin(500_000, 3_100_000, 15, 15))
    with Web({"m.tif": mask.read_bytes()}) as server, open_scene(big, mask=f"{server.url}/m.tif") as scene:
        server.plan = always(drop=0)
        with pytest.raises(DataError, match=r"/m\.tif: the connection breaks off"):
            read_all(scene)


def test_names_of_maps_and_lists(tmp_path):
    for address, name in {
        "https://x.org/a/LC08%20x.tif?sig=b/c.d": "LC08 x",
        "s3://bucket/key/what?.tif": "what_",
        "https://x.org/": "x",
        "https://x.org/..%2f..%2fetc": "_.",
    }.items():
        assert scene_name(address) == name
    (tmp_path / "list.txt").write_text("scene.tif\nhttps://x.org/s.tif?a=1\n")
    found = find_scenes([tmp_path / "list.txt", "s3://b/t.tif", "https://x.org/s.tif?a=1"])
    assert [str(f) for f in found] == [str(tmp_path / "scene.tif"), "https://x.org/s.tif", "s3://b/t.tif"]
    with pytest.raises(DataError, match="its map would have the name"):
        find_scenes(["https://x.org/s.tif?a=1", "https://x.org/s.tif?a=2"])
    with pytest.raises(DataError, match="give an address as text"):
        open_scene(tmp_path.__class__("https://x.org/s.tif?sig=SECRET"))


def test_a_server_that_says_no_version(big):
    with (
        Web({"scene.tif": big.read_bytes()}, always(headers={"ETag": None})) as server,
        open_scene(f"{server.url}/scene.tif") as scene,
    ):
        assert any("neither version nor date" in line for line in scene.look())


def test_rasters_are_read_and_closed_in_any_thread(big):
    def in_thread(work):
        done = []
        thread = threading.Thread(target=lambda: done.append(work()))
        thread.start()
        thread.join()
        return done[0]

    with Web({"scene.tif": big.read_bytes()}) as server:
        address = named(f"{server.url}/scene.tif")
        expected = read(big)[0][0]
        raster = open_raster(address)
        np.testing.assert_array_equal(in_thread(lambda: raster.read(1)), expected)
        in_thread(raster.close)
        raster = in_thread(lambda: open_raster(address))
        np.testing.assert_array_equal(raster.read(1), expected)
        held = [in_thread(lambda: open_raster(address))]
        in_thread(held.clear)  # closed by the collector
        raster.close()
