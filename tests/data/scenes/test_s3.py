import numpy as np
import pytest
from scenes import BANDS, write_scene

from glacier_fastai.data.scenes.opening import open_scene
from glacier_fastai.data.scenes.s3 import s3_request
from glacier_fastai.errors import DataError

boto3 = pytest.importorskip("boto3", reason="S3 is tested against moto's server, which is not installed")
KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "SECRET"}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch, tmp_path):
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """A bucket with a scene, and the path of that scene."""
    for name, value in {**KEYS, "AWS_S3_ENDPOINT": server, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}.items():
        monkeypatch.setenv(name, value)
    path, _ = write_scene(tmp_path / "scene.tif")
    client = boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1")
    client.create_bucket(Bucket="scenes")
    client.upload_file(str(path), "scenes", "2020/a b+ü.tif")
    return path


def read(what, **how):
    with open_scene(what, **how) as scene:
        return scene.read_window(range(5), 0, 0, scene.height, scene.width)


@pytest.mark.parametrize("prefix", ["s3://", "/vsis3/"])
def test_a_scene_is_the_same_from_s3(bucket, prefix):
    for here, there in zip(read(bucket), read(f"{prefix}scenes/2020/a b+ü.tif"), strict=True):
        np.testing.assert_array_equal(here, there)


def test_a_file_per_band_from_s3(bucket, server):
    client = boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1")
    client.upload_file(str(bucket), "scenes", "p/all.tif")
    with pytest.raises(DataError, match="^s3://scenes/p/none.tif: HTTP 404"):
        read("s3://scenes/p", bands=dict.fromkeys(BANDS, "none.tif"))
    with open_scene("s3://scenes/p/", bands={"blue": "all.tif"}) as there, open_scene(bucket) as here:
        np.testing.assert_array_equal(there.read_window([0], 0, 0, 96, 80)[0], here.read_window([0], 0, 0, 96, 80)[0])


def test_what_s3_refuses(bucket, monkeypatch):
    with pytest.raises(DataError, match=r"^s3://scenes/none.tif: HTTP 404, there is no such file"):
        read("s3://scenes/none.tif")
    with pytest.raises(DataError, match="HTTP 404"):
        read("s3://no-bucket/s.tif")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(DataError, match="no keys in the environment.*AWS_NO_SIGN_REQUEST=YES"):
        read("s3://scenes/2020/a b+ü.tif")


def test_where_objects_lie(monkeypatch):
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert s3_request("s3://b/k 1.tif")[0] == "https://b.s3.us-east-1.amazonaws.com/k%201.tif"
    assert s3_request("s3://b.c/k", "eu-north-1")[0] == "https://s3.eu-north-1.amazonaws.com/b.c/k"
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert s3_request("s3://b/k")[0] == "https://b.s3.us-west-2.amazonaws.com/k"
    monkeypatch.setenv("AWS_S3_ENDPOINT", "minio:9000")
    assert s3_request("s3://b/k")[0] == "https://minio:9000/b/k"
    monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "TRUE")
    assert s3_request("s3://b/k")[0] == "https://b.minio:9000/k"


@pytest.mark.parametrize("token", ["", "TOKEN"])
def test_signatures_are_those_of_botocore(monkeypatch, token):
    from datetime import UTC, datetime

    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
    from requests import Request

    for name, value in {**KEYS, "AWS_SESSION_TOKEN": token, "AWS_REQUEST_PAYER": "requester"}.items():
        monkeypatch.setenv(name, value)
    url, sign = s3_request("s3://bucket/a b/c+(d)~'é.tif", "eu-west-1")
    ours = sign(Request("GET", url).prepare()).headers
    when = datetime.strptime(ours["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: when.replace(tzinfo=None))
    theirs = AWSRequest("GET", url, headers={"x-amz-request-payer": "requester"})
    S3SigV4Auth(Credentials("me", "SECRET", token or None), "s3", "eu-west-1").add_auth(theirs)
    assert ours["authorization"] == theirs.headers["Authorization"]
    assert "SECRET" not in str(ours)


def test_keys_of_a_profile(monkeypatch, tmp_path):
    (tmp_path / "config").write_text("[profile work]\nregion = eu-central-1\n")
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = you\naws_secret_access_key = %x\n")
    monkeypatch.setenv("AWS_PROFILE", "work")
    from requests import Request

    url, sign = s3_request("s3://b/k")
    assert url == "https://b.s3.eu-central-1.amazonaws.com/k"
    assert "Credential=you/" in sign(Request("GET", url).prepare()).headers["authorization"]
    (tmp_path / "credentials").write_text("work: none")
    with pytest.raises(DataError, match="credentials: no file of profiles"):
        s3_request("s3://b/k")
