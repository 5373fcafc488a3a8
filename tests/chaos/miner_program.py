"""A miner that serves a folder until it is killed; SIGTERM drains it.

python -m tests.chaos.miner_program FOLDER PORT
"""

import asyncio
import sys
from pathlib import Path

from tests.chaos import process_hooks
from tests.trainer.feed.served_miner import serve

STRIDE_STEPS = 8

if __name__ == "__main__":
    process_hooks.install()
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), STRIDE_STEPS))
