"""What a feed has given so far, in figures for any loop's own logs or dashboards.

It knows batches and neither connections nor a metrics library.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.feed.batch import TripletBatch

__all__ = ["FeedFigures", "FeedTally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedFigures:
    """The figures of one feed since it was made, over every time that it was opened.

    Attributes:
        num_batches: Batches given to the loop.
        num_rows, num_triplets: Those of them, of this rank's share.
        num_over_stale: Batches above the run's staleness bound.
        num_rounds: Rounds begun; a round that is gone through again counts once.
        round_id: Of the last batch; None before the first.
        staleness_steps: Of the last batch; None before the first.
        stalled_s: Seconds that the loop has waited for batches.
        num_reconnects: How often the connection to the miner was given up for a new one.
        num_buffered: Batches that are at hand now.
    """

    num_batches: int = 0
    num_rows: int = 0
    num_triplets: int = 0
    num_over_stale: int = 0
    num_rounds: int = 0
    round_id: int | None = None
    staleness_steps: int | None = None
    stalled_s: float = 0.0
    num_reconnects: int = 0
    num_buffered: int = 0


@dataclass(slots=True)
class FeedTally:
    """Counts what a feed gives."""

    num_batches: int = 0
    num_rows: int = 0
    num_triplets: int = 0
    num_over_stale: int = 0
    num_rounds: int = 0
    num_reconnects: int = 0
    last: tuple[int, int] | None = None
    """Round and staleness of the last batch."""

    def add(self, batch: TripletBatch) -> None:
        """Count a batch that is given to the loop."""
        self.num_batches += 1
        self.num_rows += batch.num_rows
        self.num_triplets += batch.num_triplets
        self.num_over_stale += int(batch.over_stale)
        self.num_rounds += int(self.last is None or self.last[0] != batch.round_id)
        self.last = (batch.round_id, batch.staleness_steps)

    def figures(self, *, stalled_s: float, num_reconnects: int, num_buffered: int) -> FeedFigures:
        """As they stand; what the open connection knows is added."""
        return FeedFigures(
            num_batches=self.num_batches,
            num_rows=self.num_rows,
            num_triplets=self.num_triplets,
            num_over_stale=self.num_over_stale,
            num_rounds=self.num_rounds,
            round_id=self.last[0] if self.last else None,
            staleness_steps=self.last[1] if self.last else None,
            stalled_s=stalled_s,
            num_reconnects=self.num_reconnects + num_reconnects,
            num_buffered=num_buffered,
        )
