"""Reads what a run did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["read_journal", "read_steps"]


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All events in order; a line that a killed process left unfinished is left out."""
    events = []
    for line in path.read_text("utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def read_steps(path: Path) -> dict[int, dict[str, Any]]:
    """Step -> the last ``step`` event for it, by ascending step."""
    steps = {event["step"]: event for event in read_journal(path) if event["event"] == "step"}
    return dict(sorted(steps.items()))
