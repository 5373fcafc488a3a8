"""What version 1 of the wire format has fixed stays: numbers, types, and the layout of columns."""

import struct

import numpy as np
import pytest

from miner.serving.service import MiningService
from protos.coalface.v1 import mining_pb2
from trainer.feed.batch import decode_batch

# Numbers and types of the fields that clients of version 1 rely on; add, never change.
BATCH_FIELDS = {
    "step": (1, "int64"),
    "round_id": (2, "int64"),
    "model_step": (3, "int64"),
    "staleness_steps": (4, "int64"),
    "over_stale": (5, "bool"),
    "strategy": (6, "string"),
    "pass_number": (7, "int64"),
    "global_rows": (8, "int64"),
    "global_groups": (9, "int64"),
    "first_group": (10, "int64"),
    "row_ids": (16, "bytes"),
    "identity_ids": (17, "bytes"),
    "group_offsets": (18, "bytes"),
    "anchors": (19, "bytes"),
    "positives": (20, "bytes"),
    "negatives": (21, "bytes"),
    "similarities_ap": (22, "bytes"),
    "similarities_an": (23, "bytes"),
    "tiers": (24, "bytes"),
    "payload": (25, "bytes"),
}
REQUEST_FIELDS = {
    "OpenRunRequest": {
        "run_id": 1,
        "batch_rows": 2,
        "seed": 3,
        "exhausted_policy": 4,
        "stale_policy": 5,
        "max_staleness_steps": 6,
        "dataset_fingerprint": 7,
    },
    "StreamTripletsRequest": {
        "run_id": 1,
        "first_step": 2,
        "num_steps": 3,
        "rank": 4,
        "world_size": 5,
        "with_payload": 6,
    },
    "CommitStepRequest": {"run_id": 1, "step": 2},
    "AnnounceWeightsRequest": {"step": 1, "uri": 2, "sha256": 3},
    "StreamTripletsResponse": {"batches": 1, "heartbeat": 2},
}
TYPE_NAMES = {3: "int64", 8: "bool", 9: "string", 12: "bytes"}


def test_the_fields_of_a_batch_keep_number_and_type() -> None:
    fields = mining_pb2.Batch.DESCRIPTOR.fields_by_name
    for name, (number, kind) in BATCH_FIELDS.items():
        assert (fields[name].number, TYPE_NAMES[fields[name].type]) == (number, kind)


@pytest.mark.parametrize("message", REQUEST_FIELDS)
def test_the_fields_of_requests_keep_their_numbers(message: str) -> None:
    fields = getattr(mining_pb2, message).DESCRIPTOR.fields_by_name
    for name, number in REQUEST_FIELDS[message].items():
        assert fields[name].number == number


def test_every_rpc_of_the_service_is_implemented() -> None:
    service = mining_pb2.DESCRIPTOR.services_by_name["MiningService"]
    for method in service.methods:
        assert callable(getattr(MiningService, method.name))


def test_a_batch_written_byte_by_byte_is_read_as_the_proto_says() -> None:
    batch = decode_batch(
        mining_pb2.Batch(
            step=7,
            round_id=2,
            model_step=4,
            staleness_steps=3,
            over_stale=True,
            strategy="rank_window",
            pass_number=1,
            global_rows=9,
            global_groups=4,
            first_group=2,
            row_ids=struct.pack("<3q", 5, 2**40, 6),
            identity_ids=struct.pack("<3i", 1, 1, 2),
            group_offsets=struct.pack("<2i", 0, 3),
            anchors=struct.pack("<i", 0),
            positives=struct.pack("<i", 1),
            negatives=struct.pack("<i", 2),
            similarities_ap=struct.pack("<f", 0.5),
            similarities_an=struct.pack("<f", float("nan")),
            tiers=b"\x02",
        )
    )
    assert (batch.step, batch.round_id, batch.model_step, batch.staleness_steps) == (7, 2, 4, 3)
    assert (batch.over_stale, batch.strategy, batch.pass_number) == (True, "rank_window", 1)
    assert (batch.global_rows, batch.global_groups, batch.first_group) == (9, 4, 2)
    assert batch.row_ids_R.tolist() == [5, 2**40, 6]
    assert batch.identity_ids_R.tolist() == [1, 1, 2]
    assert batch.group_offsets_G1.tolist() == [0, 3]
    assert (batch.anchors_T, batch.positives_T, batch.negatives_T) == ([0], [1], [2])
    assert batch.similarities_ap_T.tolist() == [0.5]
    assert np.isnan(batch.similarities_an_T).all()
    assert batch.tiers_T.tolist() == [2]
    assert batch.samples is None
