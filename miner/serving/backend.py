"""What the service needs of the part that mines: the composition root supplies it.

It knows no gRPC.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from miner.serving.queries import LiveSnapshot

__all__ = ["Backend", "Phase", "RefreshState"]

Phase = Literal["idle", "embedding", "searching", "selecting", "sealing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshState:
    """How the mining of rounds stands.

    Attributes:
        phase: What is being done.
        model_step: Step of the weights of the refresh under way, or of the last one.
        done: Work done in this phase, in ``unit``.
        total: Work of this phase, in ``unit``; 0 where unknown.
        unit: "rows" or "anchors"; empty when idle.
        num_sealed: Refreshes since the start that ended in a sealed round.
        num_failed: Refreshes since the start that did not.
        last_error: Text of the newest failure; empty for none.
        busy_s: Seconds spent in refreshes since the start.
    """

    phase: Phase = "idle"
    model_step: int = 0
    done: int = 0
    total: int = 0
    unit: str = ""
    num_sealed: int = 0
    num_failed: int = 0
    last_error: str = ""
    busy_s: float = 0.0


class Backend(Protocol):
    """Mines rounds from announced weights. Called on the server's event loop: never blocks it."""

    async def announce(self, step: int, uri: str, sha256: str) -> bool:
        """Check weights and take them as the next to mine from; the same twice is no error.

        Returns:
            Whether newer weights were accepted before, so that these will not be mined.

        Raises:
            WeightsRefusedError: With a reason that the trainer's author understands.
            DiskError: Good weights cannot be kept, for now.
        """

    async def request_refresh(self) -> int:
        """Start a refresh from the newest accepted weights; returns their step.

        Raises:
            WeightsRefusedError: If none have been accepted yet.
        """

    async def request_drain(self) -> None:
        """Have the service stopped as by SIGTERM; returns before it is."""

    def refresh_status(self) -> RefreshState:
        """How the refresh under way stands."""

    def live_snapshot(self) -> LiveSnapshot:
        """What the newest mined round was made from. Blocks on the disk, unlike the others.

        Raises:
            RunConflictError: No round has been mined yet.
            SnapshotError: It is not there any more.
        """

    @property
    def uploads_folder(self) -> Path:
        """A folder from which announced weights are accepted, on this machine."""
