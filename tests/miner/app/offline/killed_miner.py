"""Mines into a folder and kills itself at every step on the disk; see `killed_child`.

    python -m tests.miner.app.offline.killed_miner <template folder> <work folder>

The round is random, so that no library's threads are running when the process forks.
"""

import sys
from pathlib import Path

from miner.app.offline import mine
from tests.miner.app.offline.offline_samples import make_world, selection
from tests.miner.rounds.killed_child import ACTIONS, Say, main


def mine_one(root: Path, say: Say) -> None:
    world = make_world()
    config = selection(strategy="random", groups_per_round=6)
    mined = mine(world.embeddings, world.identities, ids=world.ids, out=root, config=config)
    say(mined.round_id)


if __name__ == "__main__":
    ACTIONS["mine"] = mine_one
    main("mine", Path(sys.argv[1]), Path(sys.argv[2]))
