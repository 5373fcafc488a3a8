"""A real S3 API on loopback, moto's, that notes what it is asked and can refuse or go away."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
DENIED = (
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
)


class S3Server:
    """Its buckets outlive `stop`: it can go away and come back at the same port."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self.asked: list[tuple[str, str]] = []
        """Method and path of every request."""
        self.refuses: Callable[[str, str], bool] = lambda method, path: False
        """Whether a request is denied."""
        self.before: Callable[[str, str], None] = lambda method, path: None
        """Called with each request, before it is answered."""
        self.port = 0
        self.start()
        self.s3: Any = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="test-key",
            aws_secret_access_key="test-secret",
        )

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Go away; `start` brings it back."""
        self._server.shutdown()
        self._server.server_close()

    def bucket(self) -> str:
        """A new one."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.s3.create_bucket(Bucket=name)
        return name

    def uri(self, place: str, options: str = "") -> str:
        """Of ``bucket/folder`` on this server."""
        return f"s3://{place}?scheme=http&endpoint_override=127.0.0.1:{self.port}{options}"

    def names(self, bucket: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [o["Key"] for page in pages for o in page.get("Contents", ())]

    def read(self, bucket: str, name: str) -> bytes:
        return self.s3.get_object(Bucket=bucket, Key=name)["Body"].read()

    def write(self, bucket: str, name: str, content: bytes) -> None:
        self.s3.put_object(Bucket=bucket, Key=name, Body=content)

    def count(self, method: str, part: str) -> Counter[str]:
        """How often each path that has ``part`` was asked for."""
        return Counter(path for how, path in self.asked if how == method and part in path)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        self.before(method, path)
        if self.refuses(method, path):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"" if method == "HEAD" else DENIED]
        return self._act(environ, start_response)

    def _act(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return list(self._app(environ, start_response))


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server, with credentials for it in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server = S3Server()
        yield server
        server.s3.close()
        server.stop()
