"""Messages of a stream out of encoded batches: small ones share one, a large one is cut up.

It knows no plans and no clients.
"""

from __future__ import annotations

from collections.abc import Iterator

from miner.serving.encode import varint
from protos.coalface.v1 import mining_pb2

__all__ = ["PART_FRAME", "messages_of"]

PART_FRAME = 64
"""Bytes of a part's numbers, at most."""
_RESPONSE = mining_pb2.StreamTripletsResponse.DESCRIPTOR
_BATCHES = varint(_RESPONSE.fields_by_name["batches"].number << 3 | 2)
_PART = varint(_RESPONSE.fields_by_name["part"].number << 3 | 2)
_CONTENT = varint(mining_pb2.BatchPart.DESCRIPTOR.fields_by_name["content"].number << 3 | 2)


def messages_of(batches: list[bytes], max_bytes: int) -> Iterator[bytes]:
    """Encoded StreamTripletsResponses: of all these batches, or of parts of one that is larger."""
    if len(batches) > 1 or len(batches[0]) <= max_bytes:
        pieces: list[bytes] = []
        for batch in batches:
            pieces += (_BATCHES, varint(len(batch)), batch)
        yield b"".join(pieces)
        return
    content = batches[0]
    step = mining_pb2.Batch.FromString(content).step
    for begin in range(0, len(content), max_bytes - PART_FRAME):
        end = min(begin + max_bytes - PART_FRAME, len(content))
        numbers = mining_pb2.BatchPart(step=step, offset=begin, total_bytes=len(content))
        head = numbers.SerializeToString() + _CONTENT + varint(end - begin)
        size = varint(len(head) + end - begin)
        yield b"".join((_PART, size, head, memoryview(content)[begin:end]))
