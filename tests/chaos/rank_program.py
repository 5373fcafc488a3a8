"""One rank of a trainer: reads its run from a step on, and writes down all it gets.

    python -m tests.chaos.rank_program '{"reader": ..., "records": ..., "trained": ..., "feed": {}}'

The file `trained` is the checkpoint: it says how far all ranks have come, and there this one begins
when it starts. How far it has come itself it writes beside its records. A round that is lost is
written down and asked for again, as it may be restored; any other refusal ends it.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.toy_rounds import group_digests
from trainer.errors import FeedError, RoundLostError
from trainer.feed import TripletBatch, TripletFeed

PACE_S = 0.002
CHECKPOINT_STEPS = 20
REFUSED_PAUSE_S = 0.2


def record_of(reader: str, feed: TripletFeed, batch: TripletBatch) -> dict[str, Any]:
    positions_T = batch.anchors_T, batch.positives_T, batch.negatives_T
    same_T = batch.identity_ids_R[batch.anchors_T] == batch.identity_ids_R[batch.negatives_T]
    anchors_T, negatives_T = (batch.row_ids_R[each_T] for each_T in positions_T[::2])
    return {
        "kind": "batch",
        "reader": reader,
        "run": feed.run_id,
        "step": batch.step,
        "rank": feed.rank,
        "world_size": feed.world_size,
        "payload": feed.with_payload,
        "digest": batch.digest()[:16],
        "round": batch.round_id,
        "model_step": batch.model_step,
        "staleness_steps": batch.staleness_steps,
        "over_stale": batch.over_stale,
        "pass": batch.pass_number,
        "rows": batch.num_rows,
        "triplets": batch.num_triplets,
        "global_rows": batch.global_rows,
        "global_groups": batch.global_groups,
        "first_group": batch.first_group,
        "groups": group_digests(batch, batch.group_offsets_G1, positions_T),
        "negatives": negatives_T.tolist(),
        "clashes": np.stack([anchors_T, negatives_T], axis=1)[same_T].tolist(),
    }


def train(reader: str, records: Path, trained: Path, settings: dict[str, Any]) -> None:
    position = int(trained.read_text())
    progress, partial = records.with_suffix(".progress"), records.with_suffix(".partial")
    with records.open("a") as file:

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        names = "rank", "world_size", "stale", "max_staleness_steps"
        start = {"reader": reader, "run": settings["run_id"], "first_step": position}
        write({"kind": "start", **start, **{name: settings[name] for name in names}})
        while True:
            feed = TripletFeed(**settings, first_step=position)
            try:
                for batch in feed:
                    write(record_of(reader, feed, batch))
                    position = feed.position
                    if position % CHECKPOINT_STEPS == 0:
                        partial.write_text(str(position))
                        os.replace(partial, progress)
                        if feed.rank == 0:
                            feed.commit(int(trained.read_text()))
                    time.sleep(PACE_S)
            except FeedError as exc:
                feed.close()
                refused = {"error": type(exc).__name__, "text": str(exc), "at_s": time.monotonic()}
                write({"kind": "refused", "reader": reader, **refused})
                if not isinstance(exc, RoundLostError):
                    raise
                time.sleep(REFUSED_PAUSE_S)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    train(given["reader"], Path(given["records"]), Path(given["trained"]), given["feed"])
