"""Fresh negatives against a brute-force oracle, over a real socket."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miner.errors import RequestError
from miner.serving.queries import LiveSnapshot, Queries, query_negatives
from miner.types import IdentityTable
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.trainer.feed.served_miner import ServerThread, channel_to, make_folder
from trainer.errors import BadRequestError, ProtocolError, RunRefusedError
from trainer.feed import MinerClient

DIM = 6


def unit(rng: np.random.Generator, num_rows: int) -> np.ndarray:
    rows = rng.normal(size=(num_rows, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def snapshot(seed: int, num_rows: int = 60, num_identities: int = 9) -> LiveSnapshot:
    rng = np.random.default_rng(seed)
    ids = np.concatenate(
        [np.arange(num_identities), rng.integers(0, num_identities, num_rows - num_identities)]
    )
    kin = np.arange(num_identities, dtype=np.int32)
    kin[4] = 2  # in quarantine: counts as one with identity 2
    identities = IdentityTable.from_ids(ids.astype(np.int32), num_identities)
    return LiveSnapshot(5, 700, unit(rng, num_rows), identities, kin)


def nearest(live: LiveSnapshot, query: np.ndarray, identity: int, k: int, ceiling: float) -> Any:
    """Nested loops: (similarity, row) of the rows that are no kin, nearest first."""
    own = live.kin_I[identity] if identity >= 0 else -1
    found = []
    for row, embedding in enumerate(live.embeddings_ND):
        similarity = float(query @ embedding)
        if live.kin_I[live.identities.identity_ids_N[row]] != own and similarity <= ceiling:
            found.append((-similarity, row))
    return [(row, -negative) for negative, row in sorted(found)[:k]]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), k=st.integers(1, 70), ceiling=st.sampled_from([np.inf, 0.5]))
def test_negatives_are_those_of_nested_loops(seed: int, k: int, ceiling: float) -> None:
    live = snapshot(seed)
    rng = np.random.default_rng(seed + 1)
    queries, owners = unit(rng, 8), rng.integers(-1, 9, 8).astype(np.int32)
    scaled = (queries * rng.uniform(0.1, 30, (8, 1))).astype(np.float32)
    asked = Queries(embeddings_QD=scaled, identity_ids_Q=owners)
    found = query_negatives(live, asked, k, ceiling)
    for place in range(8):
        wanted = nearest(live, queries[place], int(owners[place]), k, ceiling)
        got = found.row_ids_QK[place]
        nearer = [row for row, similarity in wanted if similarity > wanted[-1][1] + 1e-6]
        assert set(nearer) <= set(got.tolist()), "but for what is as near as the last one"
        assert len(set(got[: len(wanted)].tolist())) == len(wanted)
        others = {row for row, _ in nearest(live, queries[place], int(owners[place]), 60, ceiling)}
        assert set(got[: len(wanted)].tolist()) <= others
        assert (got[len(wanted) :] == -1).all()
        assert np.isneginf(found.similarities_QK[place, len(wanted) :]).all()
        assert (found.identity_ids_QK[place, len(wanted) :] == -1).all()
        np.testing.assert_allclose(
            found.similarities_QK[place, : len(wanted)], [s for _, s in wanted], atol=1e-5
        )
        kept = got[got >= 0]
        assert (
            found.identity_ids_QK[place, : len(kept)] == live.identities.identity_ids_N[kept]
        ).all()


def test_rows_are_compared_by_their_own_embeddings() -> None:
    live = snapshot(3)
    rows = np.array([0, 17, 17, 59])
    by_row = query_negatives(live, Queries(row_ids_Q=rows), 5)
    by_vector = query_negatives(
        live,
        Queries(
            embeddings_QD=live.embeddings_ND[rows],
            identity_ids_Q=live.identities.identity_ids_N[rows],
        ),
        5,
    )
    assert by_row.row_ids_QK.tolist() == by_vector.row_ids_QK.tolist()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_embedding_without_a_direction_is_refused(value: float) -> None:
    asked = Queries(
        embeddings_QD=np.full((1, DIM), value, np.float32), identity_ids_Q=np.zeros(1, np.int32)
    )
    with pytest.raises(RequestError, match=r"^embeddings\.embeddings: .*\[0\]"):
        query_negatives(snapshot(0), asked, 3)


@pytest.fixture
def miner(tmp_path: Path) -> Iterator[ServerThread]:
    server = ServerThread(make_folder(tmp_path))
    yield server
    server.stop()


def test_a_client_gets_them_by_row_and_by_embedding(miner: ServerThread) -> None:
    miner.backend.live = live = snapshot(1)
    with MinerClient(miner.address, patience_s=5) as client:
        by_row = client.query_rows(np.array([4, 9]), 7)
        by_vector = client.query_embeddings(
            live.embeddings_ND[[4, 9]] * 3, live.identities.identity_ids_N[[4, 9]], 7
        )
        capped = client.query_rows(np.array([4]), 60, max_similarity=0.25)
    assert (by_row.round_id, by_row.model_step) == (5, 700)
    assert by_row.row_ids_QK.tolist() == by_vector.row_ids_QK.tolist()
    assert by_row.row_ids_QK.shape == (2, 7)
    assert 0 < capped.similarities_QK.max() <= 0.25


def test_before_a_round_is_mined_there_is_nothing_to_search(miner: ServerThread) -> None:
    with (
        MinerClient(miner.address, patience_s=5) as client,
        pytest.raises(RunRefusedError, match="no round has been mined"),
    ):
        client.query_rows(np.array([0]), 1)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "queries"),
        ({"rows": {"row_ids": b""}}, "rows.row_ids"),
        ({"rows": {"row_ids": b"seven b"}}, "rows.row_ids"),
        ({"rows": {"row_ids": np.array([60]).tobytes()}}, "rows.row_ids"),
        ({"rows": {"row_ids": bytes(8)}, "num_negatives": 1025}, "num_negatives"),
        ({"rows": {"row_ids": bytes(8 * 1000)}, "num_negatives": 1000}, "num_negatives"),
        ({"rows": {"row_ids": bytes(8)}, "max_similarity": 2.0}, "max_similarity"),
        ({"rows": {"row_ids": bytes(8)}, "max_similarity": float("nan")}, "max_similarity"),
        ({"embeddings": {"dim": 0}}, "embeddings.dim"),
        ({"embeddings": {"dim": 2}}, "embeddings.identity_ids"),
        (
            {"embeddings": {"dim": 5, "embeddings": bytes(20), "identity_ids": bytes(4)}},
            "embeddings.dim",
        ),
        (
            {"embeddings": {"dim": 6, "embeddings": bytes(20), "identity_ids": bytes(4)}},
            "embeddings.embeddings",
        ),
        (
            {
                "embeddings": {
                    "dim": 6,
                    "embeddings": np.ones(6, "<f4").tobytes(),
                    "identity_ids": np.array([9], "<i4").tobytes(),
                }
            },
            "embeddings.identity_ids",
        ),
    ],
)
def test_the_wrong_field_is_named(miner: ServerThread, values: Any, field: str) -> None:
    miner.backend.live = snapshot(1)
    request = mining_pb2.QueryNegativesRequest(**{"num_negatives": 3, **values})
    with (
        MinerClient(miner.address, patience_s=5) as client,
        pytest.raises(BadRequestError, match=f"^{field}: ".replace(".", r"\.")),
    ):
        client._ask("QueryNegatives", request)


def test_more_queries_than_may_wait_are_refused_and_the_others_answered(tmp_path: Path) -> None:
    server = ServerThread(make_folder(tmp_path), max_waiting_queries=1)
    server.backend.live = snapshot(1, num_rows=2000)
    try:
        with channel_to(server.address) as channel:
            stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
            rows = mining_pb2.RowQueries(row_ids=np.arange(250, dtype="<i8").tobytes())
            request = mining_pb2.QueryNegativesRequest(rows=rows, num_negatives=1000)
            calls = [stub.QueryNegatives.future(request, timeout=60) for _ in range(12)]
            codes = [call.code().name for call in calls]
        assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
        with MinerClient(server.address, patience_s=5) as client:
            assert client.query_rows(np.array([0]), 1).row_ids_QK.shape == (1, 1)
    finally:
        server.stop()


def test_an_answer_that_does_not_fit_itself_is_a_protocol_error() -> None:
    from trainer.feed.negatives import decode_negatives

    with pytest.raises(ProtocolError):
        decode_negatives(mining_pb2.QueryNegativesResponse(num_negatives=2, row_ids=bytes(24)))
