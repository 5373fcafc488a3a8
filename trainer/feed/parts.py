"""A batch that comes in parts, since it is too large for one message."""

from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from protos.coalface.v1 import mining_pb2
from trainer.errors import ProtocolError

__all__ = ["PartedBatch"]


@dataclass(slots=True)
class PartedBatch:
    """The parts of one batch so far; of the next one once it is whole."""

    _content: bytearray = field(default_factory=bytearray)

    def add(self, part: mining_pb2.BatchPart) -> list[mining_pb2.Batch]:
        """Take the next part; the batch if that was the last one, else nothing.

        Raises:
            ProtocolError: If a part is missing, or the parts together are no batch.
        """
        if part.offset != len(self._content):
            raise ProtocolError(
                f"step {part.step}: the part at byte {part.offset} came where the one at "
                f"{len(self._content)} was due"
            )
        self._content += part.content
        if len(self._content) < part.total_bytes:
            return []
        try:
            batch = mining_pb2.Batch.FromString(bytes(self._content))
        except DecodeError as exc:
            raise ProtocolError(f"step {part.step}: its parts are no batch: {exc}") from exc
        self._content.clear()
        return [batch]
