"""Live bars of the demo, fed from what the processes write: trainer journals and round logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from miner.rounds import RoundLog

__all__ = ["DemoProgress", "demo_progress"]


class DemoProgress:
    """One bar per task; a task's note stands at the end of its line."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def start(self, title: str, total: int | None = None) -> TaskID:
        """A new bar; the number to move it by."""
        return self._bars.add_task(title, total=total, note="")

    def move(self, task: TaskID, done: int, total: int | None = None, note: str = "") -> None:
        """Show how far a task is."""
        self._bars.update(task, completed=done, total=total, note=note)

    def finish(self, task: TaskID, note: str = "") -> None:
        """Fill a bar."""
        total = self._bars.tasks[task].total or 1
        self._bars.update(task, completed=total, total=total, note=note)
        self._bars.stop_task(task)

    def follow(self, task: TaskID, journal: Path, log: RoundLog) -> None:
        """Move an arm's bar to the newest step of its trainer's journal."""
        event = _last_step(journal)
        if event is None:
            self.move(task, 0, note="starting the trainer")
            return
        rounds = len(log.sealed_ids())
        note = f"loss {event['loss']:.3f}, round {event['round_id']} of {rounds}"
        self.move(task, int(event["step"]) + 1, note=f"{note} ({event['strategy']})")


@contextmanager
def demo_progress(console: Console) -> Iterator[DemoProgress]:
    """Show the bars while the block runs."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield DemoProgress(bars)


def _last_step(journal: Path) -> dict[str, Any] | None:
    """The newest ``step`` event; None before the first one."""
    try:
        with journal.open("rb") as file:
            file.seek(max(0, journal.stat().st_size - 8192))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "step":
            return event
    return None
