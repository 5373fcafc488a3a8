"""From the wire to the columns of a step, and what does not fit is refused."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protos.coalface.v1 import mining_pb2
from tests.trainer.feed.served_miner import toy_groups
from trainer.errors import ProtocolError
from trainer.feed.batch import TripletBatch, decode_batch


def wire_batch(seed: int = 1, *, num_groups: int = 3, with_payload: bool = True) -> Any:
    """A batch as the proto's comments describe it, made without the miner's own encoder."""
    groups = toy_groups(num_groups, seed)
    triplets = np.diff(groups.triplet_offsets_G1)
    shift_T = np.repeat(groups.row_offsets_G1[:-1], triplets)
    distinct = np.unique(groups.row_ids_R)
    return mining_pb2.Batch(
        step=4,
        round_id=2,
        strategy="random",
        global_rows=groups.num_rows,
        global_groups=num_groups,
        row_ids=groups.row_ids_R.astype("<i8").tobytes(),
        identity_ids=groups.identity_ids_R.astype("<i4").tobytes(),
        group_offsets=groups.row_offsets_G1.astype("<i4").tobytes(),
        anchors=(groups.anchors_T + shift_T).astype("<i4").tobytes(),
        positives=(groups.positives_T + shift_T).astype("<i4").tobytes(),
        negatives=(groups.negatives_T + shift_T).astype("<i4").tobytes(),
        similarities_ap=groups.similarities_ap_T.astype("<f4").tobytes(),
        similarities_an=groups.similarities_an_T.astype("<f4").tobytes(),
        tiers=groups.tiers_T.tobytes(),
        payload=payload_of(distinct) if with_payload else b"",
    )


def payload_of(row_ids: Any) -> bytes:
    images = [b"image %d" % row for row in row_ids]
    rows = pa.record_batch({"row_id": pa.array(row_ids, pa.int64()), "image": images})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    content: bytes = sink.getvalue().to_pybytes()
    return content


@given(seed=st.integers(0, 10_000), num_groups=st.integers(1, 6))
def test_triplets_point_at_rows_of_the_right_identities_and_samples_at_their_rows(
    seed: int, num_groups: int
) -> None:
    batch = decode_batch(wire_batch(seed, num_groups=num_groups))
    assert batch.samples is not None
    for anchor, positive, negative in zip(
        batch.anchors_T, batch.positives_T, batch.negatives_T, strict=True
    ):
        assert batch.identity_ids_R[anchor] == batch.identity_ids_R[positive]
        assert batch.identity_ids_R[anchor] != batch.identity_ids_R[negative]
        assert anchor != positive
    for place, row_id in enumerate(batch.row_ids_R):
        assert batch.samples["row_id"][place].as_py() == row_id
        assert batch.samples["image"][place].as_py() == b"image %d" % row_id
    assert batch.num_groups == num_groups
    assert batch.samples.num_rows == batch.num_rows == batch.group_offsets_G1[-1]
    assert batch.num_triplets == len(batch.tiers_T)


def test_arrays_are_writable_so_that_torch_takes_them_without_a_copy() -> None:
    batch = decode_batch(wire_batch())
    assert torch.from_numpy(batch.anchors_T).tolist() == batch.anchors_T.tolist()
    assert torch.from_numpy(batch.row_ids_R).dtype is torch.int64


def test_the_digest_is_the_same_for_every_read_and_another_process() -> None:
    first, second = decode_batch(wire_batch()), decode_batch(wire_batch())
    assert first.digest() == second.digest()
    assert pickle.loads(pickle.dumps(first)).digest() == first.digest()


def test_the_digest_changes_with_every_field() -> None:
    batch = decode_batch(wire_batch())
    assert batch.samples is not None
    changes: dict[str, Any] = {
        "step": 5,
        "round_id": 3,
        "model_step": 1,
        "staleness_steps": 1,
        "over_stale": True,
        "strategy": "hardest",
        "pass_number": 1,
        "global_rows": 1,
        "global_groups": 1,
        "first_group": 1,
        "samples": batch.samples.slice(1),
    }
    for name in TripletBatch.__dataclass_fields__:
        if name not in changes:
            changed = getattr(batch, name).copy()
            changed[-1] = 0.25 if changed.dtype == np.float32 else changed[-1] + 1
            changes[name] = changed
    digests = {replace(batch, **{name: value}).digest() for name, value in changes.items()}
    assert len(digests | {batch.digest()}) == len(TripletBatch.__dataclass_fields__) + 1


@pytest.mark.parametrize(
    ("column", "content"),
    [
        ("row_ids", b"1234567"),
        ("identity_ids", b""),
        ("group_offsets", b""),
        ("group_offsets", np.array([0, 2], "<i4").tobytes()),
        ("group_offsets", np.array([0, 9, 3, 99], "<i4").tobytes()),
        ("anchors", np.array([999], "<i4").tobytes()),
        ("negatives", np.array([-1], "<i4").tobytes()),
        ("similarities_ap", b""),
        ("tiers", b"\0"),
    ],
)
def test_columns_that_do_not_fit_each_other_are_refused(column: str, content: bytes) -> None:
    wire = wire_batch()
    setattr(wire, column, content)
    with pytest.raises(ProtocolError, match="step 4"):
        decode_batch(wire)


def test_a_position_outside_the_rows_is_refused_even_where_lengths_fit() -> None:
    wire = wire_batch(with_payload=False)
    positions = np.frombuffer(wire.negatives, "<i4").copy()
    positions[-1] = len(wire.row_ids) // 8
    wire.negatives = positions.tobytes()
    with pytest.raises(ProtocolError, match="do not fit"):
        decode_batch(wire)


def test_a_sample_that_was_not_sent_is_named() -> None:
    wire = wire_batch()
    row_ids = np.unique(np.frombuffer(wire.row_ids, "<i8"))
    wire.payload = payload_of(row_ids[1:])
    with pytest.raises(ProtocolError, match=rf"rows \[{row_ids[0]}"):
        decode_batch(wire)


def stream_of(**columns: Any) -> bytes:
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "payload",
    [
        b"no stream",
        stream_of(other=[1]),
        stream_of(row_id=["a"]),
        stream_of(row_id=pa.array([], "i8")),
    ],
)
def test_a_payload_that_is_none_is_refused(payload: bytes) -> None:
    wire = wire_batch()
    wire.payload = payload
    with pytest.raises(ProtocolError, match="step 4: its samples cannot be read"):
        decode_batch(wire)


@given(st.data())
def test_a_damaged_payload_is_refused_or_gives_every_sample(data: st.DataObject) -> None:
    wire = wire_batch()
    payload = bytearray(wire.payload)
    if data.draw(st.booleans()):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del payload[data.draw(st.integers(1, len(payload) - 1)) :]
    wire.payload = bytes(payload)
    try:
        batch = decode_batch(wire)
    except ProtocolError:
        return
    assert batch.samples is not None
    assert batch.samples.num_rows == batch.num_rows
