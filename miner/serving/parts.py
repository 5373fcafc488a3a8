"""Messages of bounded size out of batches: small ones share a message, a large one is cut up.

It knows the wire format, and neither streams nor clients.
"""

from collections.abc import Iterator

from protos.coalface.v1 import mining_pb2

__all__ = ["FRAME_BYTES", "messages_of"]

FRAME_BYTES = 64
"""Room for a part's numbers."""


def messages_of(
    batches: list[mining_pb2.Batch], max_bytes: int
) -> Iterator[mining_pb2.StreamTripletsResponse]:
    """Batches that fit a message together, or a single one that is larger: then in parts."""
    if len(batches) > 1 or batches[0].ByteSize() <= max_bytes:
        yield mining_pb2.StreamTripletsResponse(batches=batches)
        return
    content = batches[0].SerializeToString()
    for begin in range(0, len(content), max_bytes - FRAME_BYTES):
        part = mining_pb2.BatchPart(
            step=batches[0].step,
            offset=begin,
            total_bytes=len(content),
            content=content[begin : begin + max_bytes - FRAME_BYTES],
        )
        yield mining_pb2.StreamTripletsResponse(part=part)
