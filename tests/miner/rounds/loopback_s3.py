"""The S3 API of `tests.s3_server`, as unsteady as networks and stores are."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from miner.rounds.objects import Objects
from tests.s3_server import S3Server

BUCKET = "archive"


class UnsteadyS3(S3Server):
    """Answers late or never, loses an answer after it has acted, or forgets a put's condition.

    Attributes:
        environment: What a client of it needs.
        mode: ``well``; ``away``, ``denying``, ``hanging``; ``deaf`` to a put's condition.
        lose_answer_to: Part of a path: the store acts on the next put there, nobody is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mode = "well"
        self.lose_answer_to: str | None = None
        self.refuses = lambda _method, _path: self.mode == "denying"
        self._turns = threading.Lock()  # moto looks and puts in two steps
        self._released = threading.Event()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-read",
            "AWS_REGION": "us-east-1",
        }
        self.s3.create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        self._released.set()
        super().stop()

    @contextmanager
    def being(self, mode: str) -> Iterator[None]:
        """In another mode for a while."""
        self.mode, before = mode, self.mode
        try:
            yield
        finally:
            self.mode = before
            self._released.set()
            self._released = threading.Event()

    def place(self, folder: str) -> str:
        """The URI of a folder; where the store is, the environment says."""
        return f"s3://{BUCKET}/{folder}"

    def puts(self, part: str) -> int:
        """How many puts there were to paths with that part."""
        return self.count("PUT", part).total()

    def _act(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if self.mode == "hanging":
            self._released.wait(60)
        if self.mode in ("away", "hanging"):
            _cut(environ)
        if self.mode == "deaf":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with self._turns:
            answer = super()._act(environ, start_response)
        lost = self.lose_answer_to
        if environ["REQUEST_METHOD"] == "PUT" and lost is not None and lost in environ["PATH_INFO"]:
            self.lose_answer_to = None
            _cut(environ)
        return answer


def _cut(environ: dict[str, Any]) -> None:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def objects_of(s3: UnsteadyS3, folder: str, timeout_s: float = 1.0) -> Objects:
    """A client that loses patience soon."""
    return Objects(s3.place(folder), timeout_s)
