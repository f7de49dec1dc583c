"""Objects of S3 by https: their addresses, and requests signed with the keys that the environment names."""

from __future__ import annotations

import configparser
import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from ...errors import DataError
from ...reading import read_text, refusing

__all__ = ["s3_request"]

NO = ("NO", "FALSE", "OFF", "0")  # how GDAL is told no
NOTHING = hashlib.sha256(b"").hexdigest()  # of what is sent with a request


def s3_request(
    address: str,  # s3://BUCKET/KEY
    region: str = "",  # of the bucket; default as the environment says
) -> tuple[str, Callable[[Any], Any]]:
    """Return the address of an object by https, and what signs a request for it, with the variables that GDAL takes.

    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    env = {k: v.strip() for k, v in os.environ.items() if k.startswith("AWS_")}
    mine = _profile(env)
    bucket, _, key = address.partition("://")[2].partition("/")
    region = region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or mine.get("region", "us-east-1")
    endpoint = env.get("AWS_S3_ENDPOINT", "").rstrip("/")
    host, own = endpoint.rpartition("://")[2] or f"s3.{region}.amazonaws.com", not endpoint
    plain = endpoint.startswith("http://") or env.get("AWS_HTTPS", "YES").upper() in NO
    virtual = env.get("AWS_VIRTUAL_HOSTING", "YES" if own and "." not in bucket else "NO").upper() not in NO
    host, path = (f"{bucket}.{host}", f"/{key}") if virtual else (host, f"/{bucket}/{key}")
    path = quote(path, safe="/-_.~")
    who, secret = mine.get("aws_access_key_id"), mine.get("aws_secret_access_key")
    unsigned = env.get("AWS_NO_SIGN_REQUEST", "NO").upper() not in NO
    if not (who and secret or unsigned):
        raise DataError(
            f"{address}: no keys in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or, for a public "
            "bucket, AWS_NO_SIGN_REQUEST=YES"
        )

    def sign(request: Any) -> Any:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": host, "x-amz-content-sha256": NOTHING, "x-amz-date": now}
        if token := mine.get("aws_session_token"):
            headers["x-amz-security-token"] = token
        if payer := env.get("AWS_REQUEST_PAYER"):
            headers["x-amz-request-payer"] = payer
        if not unsigned:
            names = ";".join(sorted(headers))
            listed = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
            asked = f"{request.method}\n{path}\n\n{listed}\n{names}\n{NOTHING}"
            scope = f"{now[:8]}/{region}/s3/aws4_request"
            text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(asked.encode()).hexdigest()}"
            key = f"AWS4{secret}".encode()
            for part in (*scope.split("/"), text):
                key = hmac.digest(key, part.encode(), "sha256")
            headers["authorization"] = (
                f"AWS4-HMAC-SHA256 Credential={who}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
            )
        request.headers.update(headers)
        return request

    return f"{'http' if plain else 'https'}://{host}{path}", sign


def _profile(env: Mapping[str, str]) -> dict[str, str]:
    """Return the keys in the environment, else those of a profile in the user's files."""
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    if env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"):
        return {name: env[name.upper()] for name in names if env.get(name.upper())}
    profile, found = env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE") or "default", dict[str, str]()
    for variable, default, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", profile),
    ):
        path = os.path.expanduser(env.get(variable) or default)
        if os.path.exists(path):
            parser = configparser.RawConfigParser()
            with refusing(path, DataError, "no file of profiles"):
                parser.read_string(read_text(path, DataError, link=True))
                found |= dict(parser.items(section)) if parser.has_section(section) else {}
    return found
