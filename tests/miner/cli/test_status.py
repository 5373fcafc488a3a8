"""``status`` and ``drain`` as an operator calls them, on a real service over a real socket."""

import io
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from miner.app.operator import ServiceStatus
from miner.app.operator import status as ask
from miner.cli.status_page import status_page
from miner.serving.backend import RefreshState
from miner.serving.status_client import StatusClient
from tests.integration.loop import wait_until
from tests.miner.serving.credential_files import TOKENS, Authority, tls_settings, write_tokens
from tests.trainer.feed.served_miner import (
    NUM_ROWS,
    FlakyProxy,
    ServerThread,
    free_port,
    make_folder,
    seal_round,
)
from trainer.feed import TripletFeed

COMMAND = [sys.executable, "-m", "miner"]
BUSY = RefreshState(
    phase="embedding",
    model_step=1300,
    done=72_000,
    total=160_000,
    unit="rows",
    num_sealed=12,
    num_failed=1,
    last_error="weights of step 900: no candidate passes",
    busy_s=123.4,
)


def miner(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServerThread]:
    server = ServerThread(make_folder(tmp_path))
    with TripletFeed(server.address, run_id="faces-1", batch_rows=24, num_steps=16) as feed:
        assert len(list(feed)) == 16
        feed.commit(10)
    yield server
    server.stop()


def test_what_stays_on_this_machine_goes_through_no_proxy(
    service: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would see the token of an admin."""
    proxy = FlakyProxy(service.address, hanging=set())
    for name in ("http_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{proxy.address}")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COALFACE_TOKEN", "secret")
    with StatusClient(service.address) as client:
        assert client.status().num_rows == NUM_ROWS
        assert client.drain() == 0
    assert proxy.num_connections == 0
    proxy.close()


def page(status: ServiceStatus, width: int = 80, now_unix_s: float = 100.0) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(status_page(status, "host:1", now_unix_s))
    file: Any = console.file
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def test_the_page_shows_rounds_refresh_and_runs(service: ServerThread) -> None:
    service.backend.state = BUSY
    status = ask(service.address)
    rounds = tuple(replace(line, created_unix_s=40.0) for line in status.rounds)
    text = page(replace(status, rounds=rounds, version="9.9"))
    assert text.splitlines()[0] == "Coalface 9.9 at host:1"
    assert f"160 rows of 40 identities, fingerprint {status.dataset_fingerprint[:12]}" in text
    assert "Refresh embedding 160,000 rows, weights of step 1,300" in text
    assert "45 %, 72,000 rows done" in text
    assert "12 sealed, 1 failed, 123.4 s busy" in text
    assert "last failure: weights of step 900: no candidate passes" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["Round", "Model", "step", "Strategy", "Groups", "Triplets", "Age"] in lines
    newest = next(line for line in lines if line[:1] == ["2"])
    assert newest[:4] == ["2", "0", "random", "60"]
    assert newest[-2:] == ["1.0", "min"]
    assert ["faces-1", "16", "10", "6", "24"] in lines


def test_the_page_fits_a_narrow_terminal_and_a_long_log(service: ServerThread) -> None:
    for round_id in range(3, 30):
        seal_round(service.log.root.parent, round_id)
    text = page(ask(service.address), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "and 19 older ones" in text
    assert "…" not in text


def test_json_is_one_document_with_ages_and_lags(service: ServerThread) -> None:
    done = miner("status", "--address", service.address, "--json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["address"] == service.address
    assert [line["round_id"] for line in tree["rounds"]] == [1, 2]
    assert tree["rounds"][0]["age_s"] > 0
    assert tree["refresh"]["phase"] == "idle"
    run = {"run_id": "faces-1", "planned_steps": 16, "committed_step": 10, "batch_rows": 24}
    assert tree["runs"] == [run | {"lag_steps": 6}]


def test_a_state_folder_says_where_its_service_is(service: ServerThread, tmp_path: Path) -> None:
    endpoint = {"address": service.address, "pid": 1}
    (tmp_path / "endpoint.json").write_text(json.dumps(endpoint))
    done = miner("status", "--state-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "faces-1" in done.stdout


@pytest.mark.parametrize("command", ["status", "drain"])
def test_without_a_service_it_is_one_clear_line_and_code_1(command: str, tmp_path: Path) -> None:
    for place, told in (
        (("--address", f"127.0.0.1:{free_port()}"), "is `coalface-miner serve` running there?"),
        (("--state-dir", str(tmp_path)), "no service runs on"),
    ):
        done = miner(command, *place)
        assert done.returncode == 1
        assert done.stdout == ""
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_place_must_be_given_once(tmp_path: Path) -> None:
    for arguments in ((), ("--address", "a:1", "--state-dir", str(tmp_path))):
        done = miner("status", *arguments)
        assert done.returncode == 2
        assert "either --address host:port or --state-dir DIR" in done.stderr


def test_a_watch_tells_every_change_until_the_service_stops(service: ServerThread) -> None:
    command = [*COMMAND, "status", "--address", service.address, "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        service.backend.state = BUSY
        second = json.loads(watching.stdout.readline())
        seal_round(service.log.root.parent, 3)
        third = json.loads(watching.stdout.readline())
        service.stop(grace_s=5.0)
        assert watching.wait(timeout=20) == 0
    assert (first["refresh"]["phase"], second["refresh"]["phase"]) == ("idle", "embedding")
    assert [line["round_id"] for line in third["rounds"]] == [1, 2, 3]


def test_a_watch_on_a_terminal_redraws_in_place_and_lets_ages_grow(service: ServerThread) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "40", "TERM": "xterm"}
    command = [*COMMAND, "status", "--address", service.address, "--watch"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as watching:
        os.close(theirs)
        shown = b""

        def read_until(text: bytes) -> None:
            nonlocal shown
            deadline_s = time.monotonic() + 30
            while text not in shown:
                assert time.monotonic() < deadline_s, shown
                shown += os.read(ours, 65_536)

        read_until(b"faces-1")
        service.backend.state = BUSY
        read_until(b"45 %")
        shown = b""
        read_until(b"45 %")  # again, though nothing has changed
        assert b"\x1b[1A" in shown, "the cursor goes up, so the page is drawn in place"
        watching.terminate()
    os.close(ours)


def test_drain_asks_once_and_says_how_many_streams_end(service: ServerThread) -> None:
    done = miner("drain", "--address", service.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{service.address} is draining, 0 streams are being ended\n"
    wait_until(lambda: service.backend.drains == 1, "drain")


def test_behind_tls_and_tokens_it_takes_a_ca_and_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "ca")
    settings = tls_settings(authority.server())
    tokens_file = write_tokens(tmp_path / "tokens.yaml")
    server = ServerThread(make_folder(tmp_path / "log"), tls=settings, tokens_file=tokens_file)
    for role, token in TOKENS.items():
        (tmp_path / role).write_text(token + "\n")
    where = ["--address", server.address]
    trusting = [*where, "--tls-ca", str(authority.file)]
    try:
        assert miner("status", *where).returncode == 1
        refused = miner("status", *trusting)
        assert (refused.returncode, "UNAUTHENTICATED" in refused.stderr) == (1, True)
        seen = miner("status", *trusting, "--token-file", str(tmp_path / "read"), "--json")
        assert seen.returncode == 0, seen.stderr
        assert json.loads(seen.stdout)
        too_low = miner("drain", *trusting, "--token-file", str(tmp_path / "read"))
        assert (too_low.returncode, "admin" in too_low.stderr) == (1, True)
        assert server.backend.drains == 0
        monkeypatch.setenv("COALFACE_TOKEN", TOKENS["admin"])
        assert miner("drain", *trusting).returncode == 0
        assert server.backend.drains == 1
        faraway = miner("status", "--address", "miner.example:50051")
        assert (faraway.returncode, "unencrypted" in faraway.stderr) == (2, True)
    finally:
        server.stop()


@pytest.mark.parametrize(
    "options",
    [("--tls-certificate", "--tls-key"), ("--tls-certificate", "--tls-ca"), ("--tls-key",)],
)
def test_a_certificate_that_would_not_be_shown_is_a_clear_error(options: tuple[str, ...]) -> None:
    given = [part for option in options for part in (option, "/nowhere.pem")]
    done = miner("status", "--address", "127.0.0.1:1", *given)
    assert done.returncode == 2
    assert "--tls-certificate, --tls-key and --tls-ca go together" in done.stderr
