"""A fault says whether it met anything: connections, processes, failpoints passed."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.kept import Kept, stand_still
from tests.chaos.proxy import UnsteadyProxy
from tests.trainer.feed.served_miner import make_folder

WAIT_S = 20.0


def eventually(is_so: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return is_so()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        yield listener


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[UnsteadyProxy]:
    with contextlib.closing(UnsteadyProxy(server.getsockname()[1])) as unsteady:
        yield unsteady


def connect(proxy: UnsteadyProxy, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over which something has passed."""
    host, _, port = proxy.address.partition(":")
    client = socket.create_connection((host, int(port)), timeout=WAIT_S)
    served, _ = server.accept()
    served.settimeout(WAIT_S)
    client.sendall(b"?")
    assert served.recv(1) == b"?"
    return client, served


def test_only_connections_that_are_alive_are_cut(
    proxy: UnsteadyProxy, server: socket.socket
) -> None:
    assert proxy.cut() == 0
    gone, served = connect(proxy, server)
    gone.close()
    assert served.recv(1) == b"", "the proxy knows of the end of one when the other is told"
    served.close()
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for end in connect(proxy, server)]
        assert eventually(lambda: proxy.num_links == 1)
        assert proxy.cut() == 1
        for end in ends:
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    assert proxy.cut() == 0


def test_a_half_open_connection_carries_nothing_and_is_not_cut_any_more(
    proxy: UnsteadyProxy, server: socket.socket
) -> None:
    client, served = connect(proxy, server)
    with client, served:
        assert proxy.half_open() == 1
        assert proxy.half_open() == proxy.cut() == 0
        client.sendall(b"?")
        client.close()
        served.settimeout(0.2)
        with pytest.raises(TimeoutError):
            served.recv(1)


def test_a_delay_counts_what_it_met(proxy: UnsteadyProxy, server: socket.socket) -> None:
    client, served = connect(proxy, server)
    with client, served:
        assert proxy.num_delayed == 0
        proxy.delay_s = 0.01
        client.sendall(b"?")
        assert served.recv(1) == b"?"
        assert proxy.num_delayed == 1


def test_a_process_that_has_ended_does_not_stand_still() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert stand_still(process)
    process.send_signal(signal.SIGCONT)
    process.kill()
    assert eventually(lambda: not stand_still(process)), "a zombie at first"
    process.wait()
    assert not stand_still(process)


def test_a_program_tells_whether_it_was_alive_and_which_failpoints_acted(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "miner", num_rounds=0)
    (tmp_path / "clock").write_text("0")
    (tmp_path / "step").write_text("0")
    files = [root, tmp_path / "sealed.records", tmp_path / "step"]
    writer = Kept(["tests.chaos.writer_program", *map(str, files)], tmp_path)
    assert not writer.kill("writer.seal.begun=kill"), "it was not up yet"
    assert not writer.has_fired()
    assert eventually(lambda: writer.lives >= 2), "it has died at the failpoint, and is up again"
    assert writer.has_fired()
    assert eventually(lambda: writer.pause(0.1))
    assert writer.kill("1*writer.chunk.begin=error(EIO);900*writer.seal.begun=kill")
    assert not writer.has_fired()
    assert eventually(writer.has_fired)
    assert writer.halt() == -signal.SIGKILL
    assert writer.halt() is None
    assert not writer.pause(0.1)
    assert writer.failpoints() == [
        ("writer.seal.begun=kill", True),
        ("1*writer.chunk.begin=error(EIO)", True),
        ("900*writer.seal.begun=kill", False),
    ]
    assert writer.crashes == []
