"""What chaos does to a process from within: its clock, and a note of each failpoint that acted."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

__all__ = ["CLOCK", "FIRED", "install"]

CLOCK = "COALFACE_CHAOS_CLOCK"
"""Names a file with the seconds by which the clock of the process is wrong."""

FIRED = "COALFACE_CHAOS_FIRED"
"""Names a file that gets a line for each failpoint that acted; written before it acts."""


def install() -> None:
    """Set up what the environment asks for; call it first."""
    logging.basicConfig(level=logging.ERROR)
    clock, right_time = Path(os.environ[CLOCK]), time.time
    time.time = lambda: right_time() + float(clock.read_text() or 0)
    fired = logging.FileHandler(os.environ[FIRED], delay=True)
    fired.setFormatter(logging.Formatter("%(message)s"))
    points = logging.getLogger("miner.failpoints")
    points.setLevel(logging.WARNING)
    points.addHandler(fired)
    points.propagate = False
