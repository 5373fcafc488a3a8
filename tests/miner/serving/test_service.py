"""The unary rpcs, refusals, health and draining, over a real socket."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from miner.errors import ConfigError
from miner.serving import status
from miner.serving.backend import RefreshState
from miner.serving.server import SERVICE_NAME
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.trainer.feed.served_miner import NUM_ROWS, ServerThread, channel_to, make_folder

SHA256 = "0" * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def miner(folder: Path) -> Iterator[ServerThread]:
    server = ServerThread(folder)
    yield server
    server.stop()


@pytest.fixture
def stub(miner: ServerThread) -> Iterator[Any]:
    with channel_to(miner.address) as channel:
        yield mining_pb2_grpc.MiningServiceStub(channel)


def open_request(**values: Any) -> mining_pb2.OpenRunRequest:
    return mining_pb2.OpenRunRequest(**{"run_id": "run-1", "batch_rows": 24, **values})


def stream_request(**values: Any) -> mining_pb2.StreamTripletsRequest:
    defaults = {"run_id": "run-1", "first_step": 0, "num_steps": 1, "world_size": 1}
    return mining_pb2.StreamTripletsRequest(**{**defaults, **values})


def refusal(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    def ask() -> None:
        answer = call(request, timeout=10)
        list(answer)  # a stream fails while it is read

    with pytest.raises(grpc.RpcError) as raised:
        ask()
    error: Any = raised.value
    return error.code(), error.details()


def test_a_run_is_opened_once_and_found_again(stub: Any) -> None:
    first = stub.OpenRun(open_request(run_id="twice"))
    again = stub.OpenRun(open_request(run_id="twice"))
    assert (first.created, again.created) == (True, False)
    assert (first.planned_steps, first.committed_step, first.stride_steps) == (0, 0, 8)
    assert len(first.dataset_fingerprint) == 64


def test_a_run_with_other_values_is_refused_naming_each_of_them(stub: Any) -> None:
    stub.OpenRun(open_request(run_id="other"))
    changed = open_request(
        run_id="other", batch_rows=32, exhausted_policy=mining_pb2.EXHAUSTED_POLICY_WAIT
    )
    code, text = refusal(stub.OpenRun, changed)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "batch_rows" in text
    assert "exhausted" in text
    assert "seed" not in text


def test_unspecified_policies_mean_repeat_and_serve(stub: Any) -> None:
    stub.OpenRun(open_request(run_id="defaults"))
    named = stub.OpenRun(
        open_request(
            run_id="defaults",
            exhausted_policy=mining_pb2.EXHAUSTED_POLICY_REPEAT,
            stale_policy=mining_pb2.STALE_POLICY_SERVE,
        )
    )
    assert not named.created


def test_a_run_for_another_dataset_is_refused_with_both_fingerprints(stub: Any) -> None:
    code, text = refusal(stub.OpenRun, open_request(dataset_fingerprint="abc"))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    kept = stub.GetStatus(mining_pb2.GetStatusRequest()).dataset_fingerprint
    assert "'abc'" in text
    assert kept in text
    assert stub.OpenRun(open_request(run_id="same-data", dataset_fingerprint=kept)).created


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", ""),
        ("run_id", "../escape"),
        ("run_id", ".hidden"),
        ("run_id", "x" * 129),
        ("batch_rows", 2),
        ("batch_rows", 1_000_001),
        ("exhausted_policy", 9),
        ("stale_policy", 9),
        ("max_staleness_steps", -1),
    ],
)
def test_open_run_names_the_wrong_field(stub: Any, field: str, value: Any) -> None:
    code, text = refusal(stub.OpenRun, open_request(**{field: value}))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("first_step", -1), ("num_steps", 0), ("num_steps", 65_537), ("world_size", 0), ("rank", 1)],
)
def test_stream_triplets_names_the_wrong_field(stub: Any, field: str, value: int) -> None:
    stub.OpenRun(open_request())
    code, text = refusal(stub.StreamTriplets, stream_request(**{field: value}))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("step", -1), ("uri", ""), ("sha256", "abc"), ("sha256", "A" * 64), ("sha256", "0" * 65)],
)
def test_announce_weights_names_the_wrong_field(stub: Any, field: str, value: Any) -> None:
    values = {"step": 1, "uri": "file.safetensors", "sha256": SHA256, field: value}
    code, text = refusal(stub.AnnounceWeights, mining_pb2.AnnounceWeightsRequest(**values))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(field)


def test_an_unknown_run_is_not_found(stub: Any) -> None:
    code, text = refusal(stub.StreamTriplets, stream_request(run_id="nobody"))
    assert (code, "'nobody'" in text) == (grpc.StatusCode.NOT_FOUND, True)
    commit = mining_pb2.CommitStepRequest(run_id="nobody", step=1)
    assert refusal(stub.CommitStep, commit)[0] is grpc.StatusCode.NOT_FOUND


def test_a_step_far_beyond_the_plan_is_out_of_range(stub: Any) -> None:
    stub.OpenRun(open_request())
    code, text = refusal(stub.StreamTriplets, stream_request(first_step=10**6))
    assert (code, "1000000" in text) == (grpc.StatusCode.OUT_OF_RANGE, True)


def test_more_ranks_than_groups_are_refused(stub: Any) -> None:
    stub.OpenRun(open_request())
    code, text = refusal(stub.StreamTriplets, stream_request(world_size=50))
    assert (code, "50 ranks" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)


def test_groups_above_the_batch_size_are_refused(stub: Any) -> None:
    stub.OpenRun(open_request(run_id="small", batch_rows=3))
    code, text = refusal(stub.StreamTriplets, stream_request(run_id="small"))
    assert (code, "batch_rows=3" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)


def test_a_commit_never_moves_backwards(stub: Any) -> None:
    stub.OpenRun(open_request(run_id="commits"))
    list(stub.StreamTriplets(stream_request(run_id="commits", num_steps=6)))
    steps = [
        stub.CommitStep(mining_pb2.CommitStepRequest(run_id="commits", step=step)).committed_step
        for step in (3, 5, 2)
    ]
    assert steps == [3, 5, 5]
    negative = mining_pb2.CommitStepRequest(run_id="commits", step=-1)
    assert refusal(stub.CommitStep, negative)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_refused_weights_give_the_backends_reason(stub: Any) -> None:
    request = mining_pb2.AnnounceWeightsRequest(step=4, uri="bad.safetensors", sha256=SHA256)
    code, text = refusal(stub.AnnounceWeights, request)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert text == "bad.safetensors: the digest does not match"


def test_announced_weights_reach_the_backend_and_can_be_refreshed_from(folder: Path) -> None:
    miner = ServerThread(folder)
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        early = refusal(stub.RequestRefresh, mining_pb2.RequestRefreshRequest())
        assert early[0] is grpc.StatusCode.FAILED_PRECONDITION
        superseded = [
            stub.AnnounceWeights(
                mining_pb2.AnnounceWeightsRequest(step=step, uri=f"{step}.st", sha256=SHA256)
            ).superseded
            for step in (10, 20, 15)
        ]
        refresh = stub.RequestRefresh(mining_pb2.RequestRefreshRequest())
    miner.stop()
    assert superseded == [False, False, True]
    assert miner.backend.announced[1] == (20, "20.st", SHA256)
    assert refresh.model_step == 20


def test_status_tells_rounds_runs_dataset_and_refresh(miner: ServerThread, stub: Any) -> None:
    stub.OpenRun(open_request(run_id="told", batch_rows=30))
    list(stub.StreamTriplets(stream_request(run_id="told", num_steps=9)))
    stub.CommitStep(mining_pb2.CommitStepRequest(run_id="told", step=4))
    miner.backend.state = RefreshState(
        phase="searching", model_step=7, done=3, total=9, unit="anchors", num_failed=1, busy_s=0.5
    )
    answer = stub.GetStatus(mining_pb2.GetStatusRequest())
    assert (answer.num_rows, answer.num_identities) == (NUM_ROWS, 40)
    assert list(answer.payload_columns) == ["image"]
    rounds = [(r.round_id, r.num_groups, r.strategy) for r in answer.rounds]
    assert rounds == [(1, 60, "random"), (2, 60, "random")]
    assert answer.rounds[0].num_triplets == miner.log.read(1).num_triplets
    told = {run.run_id: run for run in answer.runs}["told"]
    assert (told.planned_steps, told.committed_step, told.batch_rows) == (16, 4, 30)
    assert answer.refresh.phase == mining_pb2.REFRESH_PHASE_SEARCHING
    assert (answer.refresh.done, answer.refresh.total, answer.refresh.unit) == (3, 9, "anchors")
    assert (answer.refresh.num_failed, answer.refresh.busy_s) == (1, 0.5)


def test_a_run_above_the_limit_is_refused_and_those_there_are_found(tmp_path: Path) -> None:
    miner = ServerThread(make_folder(tmp_path), max_runs=2)
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        for run_id in ("one", "two", "two", "one"):
            stub.OpenRun(open_request(run_id=run_id))
        code, text = refusal(stub.OpenRun, open_request(run_id="three"))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "serving.max_runs" in text
        assert len(stub.GetStatus(mining_pb2.GetStatusRequest()).runs) == 2
    miner.stop()


def test_status_tells_of_the_newest_runs_and_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "MAX_LISTED", 2)
    miner = ServerThread(make_folder(tmp_path, num_rounds=3))
    miner.backend.state = RefreshState(last_error="x" * 5_000_000)
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        for run_id in "abc":
            stub.OpenRun(open_request(run_id=run_id))
            time.sleep(0.05)
        list(stub.StreamTriplets(stream_request(run_id="a")))
        told = stub.GetStatus(mining_pb2.GetStatusRequest())
    miner.stop()
    assert [run.run_id for run in told.runs] == ["a", "c"]
    assert [one.round_id for one in told.rounds] == [2, 3]


def test_the_largest_status_fits_a_client_without_limits() -> None:
    most, large = status.MAX_LISTED, 2**63 - 1
    run = mining_pb2.RunSummary(
        run_id="x" * 128, planned_steps=large, committed_step=large, batch_rows=large
    )
    one = mining_pb2.RoundSummary(
        strategy="distance_weighted",
        created_unix_s=1.0,
        round_id=large,
        model_step=large,
        num_groups=large,
        num_rows=large,
        num_triplets=large,
    )
    refresh = mining_pb2.RefreshStatus(last_error="\U0001f600" * most)
    answer = mining_pb2.GetStatusResponse(runs=[run] * most, rounds=[one] * most, refresh=refresh)
    assert answer.ByteSize() < 2 * 2**20


def test_what_is_damaged_is_left_out_of_the_status_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    miner = ServerThread(make_folder(tmp_path, num_rounds=3))
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        for run_id in ("whole", "broken"):
            stub.OpenRun(open_request(run_id=run_id))
            list(stub.StreamTriplets(stream_request(run_id=run_id)))
            stub.CommitStep(mining_pb2.CommitStepRequest(run_id=run_id, step=1))
        (tmp_path / "log" / "runs" / "broken" / "COMMITTED").write_text("7x")
        (miner.log.folder(2) / "MANIFEST.json").write_text("{}")
        for _ in range(3):
            told = stub.GetStatus(mining_pb2.GetStatusRequest())
            page = stub.ListRounds(mining_pb2.ListRoundsRequest())
        watched = next(stub.WatchStatus(mining_pb2.WatchStatusRequest(), timeout=10))
        code, _ = refusal(stub.GetRound, mining_pb2.GetRoundRequest(round_id=2))
    miner.stop()
    assert watched == told
    assert [one.round_id for one in told.rounds] == [1, 3]
    assert [one.round_id for one in page.rounds] == [3, 1]
    assert [run.run_id for run in told.runs] == ["whole"]
    assert code is grpc.StatusCode.DATA_LOSS
    assert caplog.text.count("left out of the status") == 2


def test_an_unforeseen_error_is_internal_and_tells_its_kind_but_no_more(
    miner: ServerThread, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode() -> RefreshState:
        raise ZeroDivisionError("a secret path")

    monkeypatch.setattr(miner.backend, "refresh_status", explode)
    code, text = refusal(stub.GetStatus, mining_pb2.GetStatusRequest())
    assert code is grpc.StatusCode.INTERNAL
    assert "ZeroDivisionError" in text
    assert "secret" not in text


@pytest.mark.parametrize("service", ["", SERVICE_NAME])
def test_health_is_serving(miner: ServerThread, service: str) -> None:
    assert health_of(miner.address, service) == health_pb2.HealthCheckResponse.SERVING


def health_of(address: str, service: str) -> int:
    with channel_to(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        found: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
        return found


def test_a_taken_port_is_an_error_that_names_it(folder: Path, miner: ServerThread) -> None:
    with pytest.raises(ConfigError, match=str(miner.server.port)):
        ServerThread(folder, port=miner.server.port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "miner.example"])
def test_an_address_that_others_reach_is_refused_unless_asked_for_by_name(
    folder: Path, host: str
) -> None:
    with pytest.raises(ConfigError, match="allow_insecure_bind"):
        ServerThread(folder, host=host)


def test_an_address_that_others_reach_can_be_asked_for_by_name(folder: Path) -> None:
    miner = ServerThread(folder, host="0.0.0.0", allow_insecure_bind=True)
    address = f"127.0.0.1:{miner.server.port}"
    assert health_of(address, SERVICE_NAME) == health_pb2.HealthCheckResponse.SERVING
    miner.stop()


def test_draining_turns_health_refuses_new_streams_and_still_answers_status(folder: Path) -> None:
    miner = ServerThread(folder)
    with channel_to(miner.address) as stalled, channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        stub.OpenRun(open_request(run_id="drained", batch_rows=200))
        hanging = mining_pb2_grpc.MiningServiceStub(stalled).StreamTriplets(
            stream_request(run_id="drained", num_steps=4096, with_payload=True)
        )
        next(message for message in hanging if message.batches)
        time.sleep(1.0)  # by now the stream is blocked by its client, which reads no more
        drain = threading.Thread(target=miner.stop, args=(2.0,))
        begin_s = time.monotonic()
        drain.start()
        time.sleep(0.3)
        assert health_of(miner.address, SERVICE_NAME) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.StreamTriplets(stream_request(run_id="drained"), timeout=5))
        error: Any = refused.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(error.trailing_metadata())["retry-after-ms"] == "1000"
        assert stub.GetStatus(mining_pb2.GetStatusRequest(), timeout=5).num_rows == NUM_ROWS
        drain.join()
        assert 1.9 < time.monotonic() - begin_s < 5.0  # a stalled client cannot hold it longer
        hanging.cancel()


def test_draining_ends_a_waiting_stream_with_ok(tmp_path: Path) -> None:
    miner = ServerThread(make_folder(tmp_path, num_rounds=0))
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        stub.OpenRun(open_request())
        stream = stub.StreamTriplets(stream_request())
        assert next(stream).heartbeat.next_step == 0
        begin_s = time.monotonic()
        miner.stop(grace_s=5.0)
        assert time.monotonic() - begin_s < 1.0
        assert all(not message.batches for message in stream)
        assert stream.code() is grpc.StatusCode.OK
