"""Seals a round after the other and removes old ones, until it is killed or fenced off.

    python -m tests.chaos.writer_program FOLDER RECORDS STEP_FILES...

The lowest step in the files is the one that the next round's weights are of. It ends with `FENCED`
once another writer has taken over the log; whatever else goes wrong is tried again with the next
round.
"""

import json
import sys
import time
from pathlib import Path

from miner.data import RowStore
from miner.errors import CoalfaceError, StaleWriterError
from miner.rounds import RoundLog, RoundsConfig, RoundWriter
from miner.serving.runs import RunStore
from tests.chaos import process_hooks
from tests.chaos.miner_program import STRIDE_STEPS
from tests.chaos.toy_rounds import capped_groups, make_draft

FENCED = 3
PAUSE_S = 0.7
NUM_GROUPS, CHUNK_GROUPS, KEEP_ROUNDS = 400, 128, 12


def open_writer(log: RoundLog) -> RoundWriter:
    """Take over the log, as soon as the disk lets it."""
    while True:
        try:
            return RoundWriter.open(log, RoundsConfig(chunk_groups=CHUNK_GROUPS))
        except CoalfaceError as exc:
            print(f"writer: {exc}", file=sys.stderr)
            time.sleep(PAUSE_S)


def write_rounds(root: Path, records: Path, *step_files: Path) -> None:
    log, fingerprint = RoundLog(root / "log"), RowStore.open(root / "store").fingerprint
    writer = open_writer(log)
    runs = RunStore(root / "log", STRIDE_STEPS)
    with records.open("a") as file:
        while True:
            try:
                groups = capped_groups(NUM_GROUPS, seed=writer.next_round_id)
                model_step = min(int(path.read_text()) for path in step_files)
                draft = make_draft(fingerprint, model_step)
                sealed = writer.seal(groups, draft)
                record = {"kind": "sealed", "round": sealed.round_id, "sha256": sealed.sha256}
                file.write(json.dumps(record) + "\n")
                file.flush()
                writer.retain(KEEP_ROUNDS, runs.needed_rounds(idle_run_s=7 * 86400.0))
            except StaleWriterError:
                raise
            except CoalfaceError as exc:
                print(f"writer: {exc}", file=sys.stderr)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    process_hooks.install()
    try:
        write_rounds(*(Path(argument) for argument in sys.argv[1:]))
    except StaleWriterError as exc:
        print(f"writer: {exc}", file=sys.stderr)
        sys.exit(FENCED)
