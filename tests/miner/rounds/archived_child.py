"""Writes a log with an archive until a failpoint kills it, one process for each setting.

    python -m tests.miner.rounds.archived_child <uri> <work folder> <settings>...

Setting ``i`` of `COALFACE_FAILPOINTS` is met by a process of its own, on the disk ``i`` in the work
folder and the archive ``i`` below the URI. ``says-<i>`` holds what it was told, ``ends-<i>`` the
signal that ended it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from miner import failpoints
from miner.rounds.archive import Archive
from miner.rounds.objects import Objects
from tests.miner.rounds.archived import open_archived, seal_next


def live(root: Path, uri: str, says: Path) -> None:
    """Rounds 1 to 5 are sealed, and 1 and 2 expire."""
    with says.open("w") as answers:
        writer = open_archived(root, Archive(Objects(uri, 10.0)))
        for _ in range(5):
            round_id = seal_next(writer)
            answers.write(json.dumps([round_id, writer.log.manifest(round_id).sha256]) + "\n")
            answers.flush()
            writer.retain(3, set())


def main(uri: str, work: Path, settings: list[str]) -> None:
    for number, setting in enumerate(settings):
        child = os.fork()  # the client of the store is loaded in the child alone
        if child == 0:
            code = 1
            try:
                failpoints.arm(setting)
                live(work / str(number), f"{uri}/{number}", work / f"says-{number}")
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        (work / f"ends-{number}").write_text(str(os.WTERMSIG(status) or os.WEXITSTATUS(status)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
