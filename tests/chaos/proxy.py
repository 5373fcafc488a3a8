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
        num_delayed: Pieces that were passed on late.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._links: set[_Link] = set()
        self._silent: set[_Link] = set()
        self._lock = threading.Lock()
        self.delay_s = 0.0
        self.num_delayed = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def num_links(self) -> int:
        """Connections that are alive and pass on what comes."""
        return len(self._links)

    def cut(self) -> int:
        """Reset every connection that is alive; how many there were."""
        links = self._take_links()
        for link in links:
            link.reset()
        return len(links)

    def half_open(self) -> int:
        """Nothing passes any more over the connections that are alive; how many there were.

        They stay open, and an end that closes is not told to the other.
        """
        links = self._take_links()
        for link in links:
            link.silent.set()
        with self._lock:
            self._silent |= links
        return len(links)

    def close(self) -> None:
        self._listener.close()
        self.cut()
        for link in list(self._silent):
            link.reset()

    def forget(self, link: _Link) -> None:
        """A connection has ended."""
        with self._lock:
            self._links.discard(link)
            self._silent.discard(link)

    def _take_links(self) -> set[_Link]:
        with self._lock:
            links, self._links = self._links, set()
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
                self._links.add(link)
            link.start()


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: UnsteadyProxy, inner: socket.socket, outer: socket.socket) -> None:
        self._proxy = proxy
        self._ends = inner, outer
        self._ended: list[socket.socket] = []
        self.silent = threading.Event()

    def start(self) -> None:
        for ends in (self._ends, self._ends[::-1]):
            threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def reset(self) -> None:
        self.silent.set()  # no orderly end is passed on
        for end in self._ends:
            _close(end)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while content := source.recv(65_536):
                if self._proxy.delay_s:
                    time.sleep(self._proxy.delay_s)
                    self._proxy.num_delayed += 1
                if not self.silent.is_set():
                    sink.sendall(content)
            if not self.silent.is_set():
                self._proxy.forget(self)
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            if not self.silent.is_set():
                self.reset()
        self._ended.append(source)
        if len(self._ended) == 2:
            self._proxy.forget(self)
            for end in self._ends:
                end.close()


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        end.shutdown(socket.SHUT_RD)  # wakes who reads; to write also would send an orderly end
    end.close()
