"""P1 and P4: a step's batch keeps its bytes, and the ranks' shares together are the batch."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.data import DatasetConfig, RowStore, ingest
from miner.errors import DamagedRoundError, RequestError, RoundExpiredError, RunConflictError
from miner.rounds import RoundLog
from miner.serving.assemble import BatchAssembler
from miner.serving.encode import PAYLOAD_TAG, Batches, BatchValues, GroupRecords, varint
from miner.serving.plan import PlannedSteps, RunParameters, order_of
from miner.serving.runs import RunStore
from miner.serving.wire import joined, messages_of
from miner.types import Groups
from protos.coalface.v1 import mining_pb2
from tests.miner.rounds.round_samples import make_draft, make_groups, make_log
from tests.miner.serving.step_plans import step_plans


def plan_of(root: Path, log: RoundLog, step: int, *, batch_rows: int = 40) -> PlannedSteps:
    run, _ = RunStore(root, 4).open(RunParameters(f"r{batch_rows}", batch_rows=batch_rows, seed=1))
    steps = run.plan_some(step, 1, log)
    assert isinstance(steps, PlannedSteps)
    assert steps.num_steps == 1
    return steps


def made(
    assembler: BatchAssembler, plan: PlannedSteps, rank: int, world_size: int, with_payload: bool
) -> Any:
    """One rank's share of one step, as a client reads it."""
    (batch,) = read(
        assembler.messages(
            plan, rank, world_size, with_payload, max_bytes=2**20, enough_bytes=1
        ).messages
    )
    return batch


def read(messages: list[bytes]) -> list[Any]:
    """The batches of some messages, as a client reads them."""
    batches, parts = [], b""
    for content in messages:
        message = mining_pb2.StreamTripletsResponse.FromString(content)
        batches += message.batches
        if message.HasField("part"):
            assert message.part.offset == len(parts)
            parts += message.part.content
            if len(parts) == message.part.total_bytes:
                batches.append(mining_pb2.Batch.FromString(parts))
                assert batches[-1].step == message.part.step
                parts = b""
    assert not parts
    return batches


def triplets_of(batch: Any) -> list[tuple[int, ...]]:
    """Row ids of every triplet, read as a client reads them."""
    rows = np.frombuffer(batch.row_ids, "<i8")
    columns = [np.frombuffer(c, "<i4") for c in (batch.anchors, batch.positives, batch.negatives)]
    return [tuple(rows[i] for i in triplet) for triplet in zip(*columns, strict=True)]


def triplets_by_loops(groups: Groups, group_ids: list[int]) -> list[tuple[int, ...]]:
    found = []
    for g in group_ids:
        first = groups.row_offsets_G1[g]
        for t in range(groups.triplet_offsets_G1[g], groups.triplet_offsets_G1[g + 1]):
            columns = (groups.anchors_T, groups.positives_T, groups.negatives_T)
            found.append(tuple(int(groups.row_ids_R[first + c[t]]) for c in columns))
    return found


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    numbers=st.lists(st.integers(0, 2**62), min_size=9, max_size=9),
    strategy=st.text(max_size=200),
    seed=st.integers(0, 99),
    most=st.sampled_from([(8, 4), (40, 20), (3, 0)]),
)
def test_protobuf_reads_what_is_encoded_and_would_write_the_same(
    sizes: list[int], numbers: list[int], strategy: str, seed: int, most: tuple[int, int]
) -> None:
    groups = make_groups(12, seed=seed, rows=(3, most[0]), triplets=(0, most[1]))
    rng = np.random.default_rng(seed)
    taken = rng.integers(0, 12, sum(sizes))
    ends = np.cumsum(sizes)
    shares = np.stack((ends - sizes, ends), axis=1)
    numbers[BatchValues._fields.index("over_stale")] %= 2
    values = dict(zip(BatchValues._fields, numbers, strict=True))
    batches = Batches(
        GroupRecords(groups, strategy), taken, shares, np.array([numbers] * len(sizes))
    )
    (message,) = messages_of(batches, [], 2**20)
    assert len(message) == batches.sizes_B.sum()
    for (begin, end), batch in zip(shares, read([message]), strict=True):
        share = groups.take(taken[begin:end])
        starts = np.repeat(share.row_offsets_G1[:-1], np.diff(share.triplet_offsets_G1))
        wanted = mining_pb2.Batch(
            **values,
            strategy=strategy,
            row_ids=share.row_ids_R.astype("<i8").tobytes(),
            identity_ids=share.identity_ids_R.astype("<i4").tobytes(),
            group_offsets=share.row_offsets_G1.astype("<i4").tobytes(),
            anchors=(share.anchors_T + starts).astype("<i4").tobytes(),
            positives=(share.positives_T + starts).astype("<i4").tobytes(),
            negatives=(share.negatives_T + starts).astype("<i4").tobytes(),
            similarities_ap=share.similarities_ap_T.astype("<f4").tobytes(),
            similarities_an=share.similarities_an_T.astype("<f4").tobytes(),
            tiers=share.tiers_T.tobytes(),
        )
        assert batch == wanted


@settings(max_examples=60, deadline=None)
@given(
    num_groups=st.lists(st.integers(0, 6), min_size=1, max_size=9),
    payloads=st.lists(st.lists(st.binary(max_size=400), max_size=4), min_size=9, max_size=9),
    with_payload=st.booleans(),
    most=st.integers(100, 1500),
)
def test_messages_hold_the_batches_whole_or_in_parts(
    num_groups: list[int], payloads: list[list[bytes]], with_payload: bool, most: int
) -> None:
    groups, ends = make_groups(12, seed=1), np.cumsum(num_groups)
    taken = np.arange(ends[-1]) % 12
    shares = np.stack((ends - num_groups, ends), axis=1)
    values = np.zeros((len(num_groups), len(BatchValues._fields)), np.int64)
    values[:, BatchValues._fields.index("step")] = np.arange(len(num_groups)) + 5
    fields, following = [], None
    if with_payload:
        for pieces in payloads[: len(num_groups)]:
            content = b"".join(pieces)
            frame = varint(PAYLOAD_TAG) + varint(len(content))
            fields.append([pa.py_buffer(piece) for piece in (frame, *pieces)])
        following = np.array([sum(piece.size for piece in field) for field in fields])
    batches = Batches(GroupRecords(groups, "hardest"), taken, shares, values, following)
    messages = messages_of(batches, fields, most)
    assert max(map(len, messages)) <= most
    found = read(messages)
    assert [batch.step for batch in found] == [5 + number for number in range(len(num_groups))]
    for number, batch in enumerate(found):
        begin, end = shares[number]
        assert batch.row_ids == groups.take(taken[begin:end]).row_ids_R.tobytes()
        assert batch.payload == (b"".join(payloads[number]) if with_payload else b"")
    small = int(np.count_nonzero(batches.sizes_B <= most))
    in_parts = sum(message.startswith(bytes([3 << 3 | 2])) for message in messages)
    assert in_parts >= len(num_groups) - small
    assert joined(messages) == messages if in_parts else read(joined(messages)) == found


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_columns_of_all_ranks_hold_the_triplets_of_the_planned_groups(
    tmp_path: Path, world_size: int
) -> None:
    log, _ = make_log(tmp_path, num_rounds=1, num_groups=30)
    assembler, groups = BatchAssembler(log, None), log.read(1)
    for step in range(4):
        plan = plan_of(tmp_path, log, step)
        batches = [made(assembler, plan, rank, world_size, False) for rank in range(world_size)]
        (one,) = step_plans(plan)
        chosen = order_of(30, 1, 1, one.pass_number)[one.begin : one.end].tolist()
        whole = groups.take(np.array(chosen))
        triplets = [triplet for batch in batches for triplet in triplets_of(batch)]
        assert triplets == triplets_by_loops(groups, chosen)
        for column in ("row_ids", "identity_ids", "similarities_ap", "similarities_an", "tiers"):
            joined = b"".join(getattr(batch, column) for batch in batches)
            stem = column + ("_R" if column in ("row_ids", "identity_ids") else "_T")
            assert joined == getattr(whole, stem).tobytes()
        first_group = 0
        for batch in batches:
            offsets = np.frombuffer(batch.group_offsets, "<i4")
            assert batch.first_group == first_group
            assert np.diff(offsets).tolist() == [
                np.diff(groups.row_offsets_G1)[g]
                for g in chosen[first_group : first_group + len(offsets) - 1]
            ]
            first_group += len(offsets) - 1
            assert (batch.global_groups, batch.global_rows) == (len(chosen), whole.num_rows)
        assert first_group == len(chosen)


def test_a_batch_tells_what_its_plan_and_its_round_say(tmp_path: Path) -> None:
    log, writer = make_log(tmp_path, num_rounds=0)
    draft = make_draft(model_step=1, weights_sha256="a" * 64, strategy="rank_window")
    writer.seal(make_groups(30), draft)
    batch = made(BatchAssembler(log, None), plan_of(tmp_path, log, 3), 0, 1, False)
    assert (batch.step, batch.round_id, batch.model_step, batch.staleness_steps) == (3, 1, 1, 2)
    assert (batch.strategy, batch.pass_number, batch.over_stale) == ("rank_window", 0, False)
    assert batch.payload == b""


def test_a_batch_keeps_its_bytes_when_newer_rounds_come_and_after_a_restart(
    tmp_path: Path,
) -> None:
    log, writer = make_log(tmp_path, num_rounds=1, num_groups=30)
    plans = [plan_of(tmp_path, log, step) for step in range(6)]
    before = [made(BatchAssembler(log, None), plan, 1, 2, False) for plan in plans]
    for seed in range(5):
        writer.seal(make_groups(12, seed=seed), make_draft())
    writer.retain(2, needed=RunStore(tmp_path, 4).needed_rounds(idle_run_s=60))
    log = RoundLog(tmp_path)
    again = [plan_of(tmp_path, log, step) for step in range(6)]
    assert [made(BatchAssembler(log, None), plan, 1, 2, False) for plan in again] == before


@pytest.fixture
def row_store(tmp_path: Path) -> RowStore:
    """60 rows, all that `make_groups` draws from."""
    rows = range(60)
    table = pa.table(
        {
            "sample_id": [f"s{i:02d}" for i in rows],
            "identity": [f"p{i % 9}" for i in rows],
            "image": [b"pixels of %d" % i for i in rows],
        }
    )
    (tmp_path / "dataset").mkdir()
    pq.write_table(table, tmp_path / "dataset" / "a.parquet", row_group_size=7)
    ingest(DatasetConfig(uri=str(tmp_path / "dataset")), tmp_path / "store")
    return RowStore.open(tmp_path / "store")


def test_the_payload_is_each_distinct_sample_once_ascending(
    tmp_path: Path, row_store: RowStore
) -> None:
    log, _ = make_log(tmp_path, num_rounds=1, num_groups=30)
    plan = plan_of(tmp_path, log, 0, batch_rows=90)
    batches = [made(BatchAssembler(log, row_store), plan, rank, 2, True) for rank in (0, 1)]
    for batch in batches:
        row_ids = np.frombuffer(batch.row_ids, "<i8")
        assert len(set(row_ids.tolist())) < len(row_ids), "the draw must repeat a row"
        samples = pa.ipc.open_stream(batch.payload).read_all()
        assert samples["row_id"].to_pylist() == sorted(set(row_ids.tolist()))
        assert samples["image"].to_pylist() == [
            b"pixels of %d" % row_id for row_id in samples["row_id"].to_pylist()
        ]
    reopened = BatchAssembler(RoundLog(tmp_path), RowStore.open(tmp_path / "store"))
    assert [made(reopened, plan, rank, 2, True) for rank in (0, 1)] == batches


def test_payload_without_a_row_store_is_refused_by_field(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    with pytest.raises(RequestError, match=r"^with_payload: "):
        made(BatchAssembler(log, None), plan_of(tmp_path, log, 0), 0, 1, True)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused_by_field(
    tmp_path: Path, rank: int, world_size: int
) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    with pytest.raises(RequestError, match=r"^rank: "):
        made(BatchAssembler(log, None), plan_of(tmp_path, log, 0), rank, world_size, False)


def test_more_ranks_than_groups_is_a_conflict(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    with pytest.raises(RunConflictError, match="groups cannot be shared among 50 ranks"):
        made(BatchAssembler(log, None), plan_of(tmp_path, log, 0), 0, 50, False)


def test_steps_made_together_have_the_bytes_of_each_by_itself(
    tmp_path: Path, row_store: RowStore
) -> None:
    log, _ = make_log(tmp_path, num_rounds=1, num_groups=30)
    run, _ = RunStore(tmp_path, 16).open(RunParameters("together", batch_rows=40, seed=1))
    steps = run.plan_some(0, 16, log)
    assert isinstance(steps, PlannedSteps)
    assert set(steps.batches_B3[:, 0].tolist()) >= {0, 1}, "more than one pass"
    singles = [run.plan_some(step, 1, log) for step in range(16)]
    for rank, with_payload in ((0, False), (1, True)):
        assembler = BatchAssembler(log, row_store)
        together = assembler.messages(
            steps, rank, 2, with_payload, max_bytes=3000, enough_bytes=2**20
        ).messages
        alone = [made(assembler, one, rank, 2, with_payload) for one in singles]
        assert [batch.SerializeToString() for batch in read(together)] == [
            batch.SerializeToString() for batch in alone
        ]


@pytest.mark.parametrize("enough", [0, 5_000, 2**30])
def test_samples_are_read_until_there_are_enough_but_of_one_step_at_least(
    tmp_path: Path, row_store: RowStore, enough: int
) -> None:
    log, _ = make_log(tmp_path, num_rounds=1, num_groups=30)
    run, _ = RunStore(tmp_path, 16).open(RunParameters("enough", batch_rows=40, seed=1))
    steps = run.plan_some(0, 16, log)
    assert isinstance(steps, PlannedSteps)
    made = BatchAssembler(log, row_store).messages(
        steps, 0, 1, True, max_bytes=2**20, enough_bytes=enough
    )
    batches = read(made.messages)
    assert [batch.step for batch in batches] == made.steps.steps_B.tolist()
    rows = [pa.ipc.open_stream(batch.payload).read_all()["row_id"].to_numpy() for batch in batches]
    sizes = [int(row_store.row_bytes(row_ids).sum()) for row_ids in rows]
    assert sum(sizes[:-1]) < max(enough, 1)
    assert len(batches) == 16 or sum(sizes) >= enough


def test_the_batch_of_an_expired_round_says_which_are_kept(tmp_path: Path) -> None:
    log, writer = make_log(tmp_path, num_rounds=1)
    plan = plan_of(tmp_path, log, 0)
    for seed in (2, 3):
        writer.seal(make_groups(5, seed=seed), make_draft())
    writer.retain(2, needed=set())
    with pytest.raises(RoundExpiredError, match="round 1 has expired: rounds 2-3 are kept"):
        made(BatchAssembler(log, None), plan, 0, 1, False)


def test_a_damaged_round_ends_in_an_error_not_in_other_triplets(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    plan = plan_of(tmp_path, log, 0)
    chunk = log.folder(1) / "chunk-00001.arrow"
    chunk.write_bytes(chunk.read_bytes()[:-8])
    with pytest.raises(DamagedRoundError, match=r"chunk-00001\.arrow"):
        made(BatchAssembler(RoundLog(tmp_path), None), plan, 0, 1, False)


def test_a_round_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path / "a", num_rounds=1)
    plan = plan_of(tmp_path, log, 0)
    shutil.rmtree(tmp_path / "a")
    other, _ = make_log(tmp_path / "a", num_rounds=1)
    with pytest.raises(DamagedRoundError, match="rounds were replaced"):
        made(BatchAssembler(other, None), plan, 0, 1, False)
