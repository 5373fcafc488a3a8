"""An S3 store on loopback, and an unsteady way to it.

The store is moto's server. What comes to it passes `UnsteadyS3`, which does to requests what
networks and stores do: it answers late or never, denies, loses an answer after the store has acted,
or forgets the condition of a put.
"""

from __future__ import annotations

import http.client
import logging
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from miner.rounds.objects import Objects

BUCKET = "archive"
DENIED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"


class UnsteadyS3:
    """Passes requests on to a store.

    Attributes:
        environment: What a client of it needs.
        requests: Method and path of each request so far.
        mode: ``well``; ``away``, ``denying``, ``hanging``; ``deaf`` to a put's condition.
        lose_answer_to: Part of a path: the store acts on the next put there, nobody is told.
    """

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer  # of seconds

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._store.start()
        self._port = self._store.get_host_and_port()[1]
        self._turns = threading.Lock()  # moto looks and puts in two steps
        self._released = threading.Event()
        self.requests: list[tuple[str, str]] = []
        self.mode = "well"
        self.lose_answer_to: str | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-read",
            "AWS_REGION": "us-east-1",
        }
        urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._store.stop()

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

    def uri(self, folder: str) -> str:
        return f"s3://{BUCKET}/{folder}"

    def puts(self, part: str) -> int:
        """How many puts there were to paths with that part."""
        return sum(method == "PUT" and part in path for method, path in self.requests)

    def _pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.command, handler.path))
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if self.mode == "away":
            handler.close_connection = True
            return
        if self.mode == "hanging":
            self._released.wait(60)
            handler.close_connection = True
            return
        if self.mode == "denying":
            _answer(handler, 403, {"Content-Type": "application/xml"}, DENIED)
            return
        headers = dict(handler.headers)
        if self.mode == "deaf":
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        with self._turns:
            status, told, content = self._ask(handler.command, handler.path, headers, body)
        lost = self.lose_answer_to
        if handler.command == "PUT" and lost is not None and lost in handler.path:
            self.lose_answer_to = None
            handler.close_connection = True
            return
        _answer(handler, status, told, content)

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        store = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            store.request(method, path, body, headers)
            answer = store.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            store.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        unsteady = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                unsteady._pass_on(self)

            do_PUT = do_DELETE = do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _answer(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
            handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def objects_of(s3: UnsteadyS3, folder: str, timeout_s: float = 1.0) -> Objects:
    """A client that loses patience soon."""
    return Objects(s3.uri(folder), timeout_s)
