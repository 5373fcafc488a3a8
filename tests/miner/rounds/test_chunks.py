"""Groups survive the way through a chunk file."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.rounds.chunks import decode_chunk, encode_chunk
from tests.miner.rounds.round_samples import bytes_of, make_groups


@settings(max_examples=30, deadline=None)
@given(num_groups=st.integers(1, 20), seed=st.integers(0, 999), begin=st.integers(0, 19))
def test_groups_come_back_to_the_byte(num_groups: int, seed: int, begin: int) -> None:
    groups = make_groups(num_groups, seed=seed).take(np.arange(min(begin, num_groups), num_groups))
    content = encode_chunk(groups)
    assert bytes_of(decode_chunk(content)) == bytes_of(groups)
    assert encode_chunk(groups) == content


def test_a_chunk_is_a_plain_arrow_file_with_one_record_per_group() -> None:
    groups = make_groups(3, seed=1)
    table = pa.ipc.open_file(encode_chunk(groups)).read_all()
    for g in range(3):
        rows = slice(*groups.row_offsets_G1[g : g + 2])
        triplets = slice(*groups.triplet_offsets_G1[g : g + 2])
        record = table.slice(g, 1).to_pylist()[0]
        assert record["row_ids"] == groups.row_ids_R[rows].tolist()
        assert record["negatives"] == groups.negatives_T[triplets].tolist()
