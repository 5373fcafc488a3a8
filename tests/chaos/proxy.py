"""A TCP proxy that is a bad network: it delays, cuts and half-opens connections on request."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

__all__ = ["UnsteadyProxy"]

RESET = struct.pack("ii", 1, 0)
"""Closing a socket with this linger sends a reset."""


class UnsteadyProxy:
    """Passes connections on to one address. Its methods may be called from any thread.

    Attributes:
        address: Where clients connect.
        delay_s: Before each piece that is passed on.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._links: list[_Link] = []
        self._silent: list[_Link] = []
        self._lock = threading.Lock()
        self.delay_s = 0.0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        links = self._take_links()
        for link in links:
            link.reset()
        return len(links)

    def half_open(self) -> int:
        """From now on nothing passes over the connections there are, though they stay open."""
        links = self._take_links()
        for link in links:
            link.silent.set()
        self._silent += links
        return len(links)

    def close(self) -> None:
        self._listener.close()
        self.cut()
        for link in self._silent:
            link.reset()

    def _take_links(self) -> list[_Link]:
        with self._lock:
            links, self._links = self._links, []
        return links

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            try:
                outer = socket.create_connection(self._target, timeout=2.0)
                outer.settimeout(None)
            except OSError:  # no miner there: the client sees its connection reset
                _close(inner)
                continue
            link = _Link(self, inner, outer)
            with self._lock:
                self._links.append(link)
            link.start()


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: UnsteadyProxy, inner: socket.socket, outer: socket.socket) -> None:
        self._proxy = proxy
        self._ends = inner, outer
        self.silent = threading.Event()

    def start(self) -> None:
        for ends in (self._ends, self._ends[::-1]):
            threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def reset(self) -> None:
        for end in self._ends:
            _close(end)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65_536):
                if self._proxy.delay_s:
                    time.sleep(self._proxy.delay_s)
                if not self.silent.is_set():
                    sink.sendall(content)
        if not self.silent.is_set():
            self.reset()


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        end.shutdown(socket.SHUT_RDWR)
    end.close()
