"""A service's status as a page of text, and as JSON.

It is given the clock, and shows what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from miner.app.operator import ServiceStatus

__all__ = ["describe_age", "status_json", "status_page"]

ROUNDS_SHOWN = 10
BAR_WIDTH = 32
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def describe_age(seconds: float) -> str:
    """Two digits or so, and a unit.

    Example:
        >>> [describe_age(s) for s in (0.4, 59, 61, 7300, 200000)]
        ['0 s', '59 s', '1.0 min', '2.0 h', '2.3 d']
    """
    for size, unit in UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def status_json(status: ServiceStatus, address: str, now_unix_s: float) -> dict[str, Any]:
    """The status as a tree of plain values, with ages and lags worked out."""
    tree = {"address": address, **asdict(status)}
    for told, line in zip(tree["rounds"], status.rounds, strict=True):
        told["age_s"] = round(max(0.0, now_unix_s - line.created_unix_s), 3)
    for told, run in zip(tree["runs"], status.runs, strict=True):
        told["lag_steps"] = run.lag_steps
    return tree


def status_page(status: ServiceStatus, address: str, now_unix_s: float) -> RenderableType:
    """The page; it fits any width and needs no terminal."""
    head = Text.assemble(("Coalface ", "bold"), status.version, " at ", (address, "bold"))
    dataset = Text(
        f"{status.num_rows:,} rows of {status.num_identities:,} identities, "
        f"fingerprint {status.dataset_fingerprint[:12]}"
    )
    parts = [head, dataset, Text(), *_refresh(status), Text(), *_rounds(status, now_unix_s)]
    return Group(*parts, Text(), *_runs(status))


def _refresh(status: ServiceStatus) -> Iterator[RenderableType]:
    state = status.refresh
    if state.phase == "idle":
        yield Text.assemble(("Refresh ", "bold"), "idle")
    else:
        work = f" {state.total:,} {state.unit}" if state.total else ""
        weights = f", weights of step {state.model_step:,}"
        yield Text.assemble(("Refresh ", "bold"), (state.phase, "cyan"), work, weights)
    if state.done and state.total:
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=state.total, completed=state.done, width=BAR_WIDTH)
        done = f"{100 * state.done / state.total:.0f} %, {state.done:,} {state.unit} done"
        line.add_row(bar, Text(done))
        yield line
    failed = f"{state.num_failed:,} failed"
    yield Text.assemble(
        f"since the start: {state.num_sealed:,} sealed, ",
        (failed, "bold red" if state.num_failed else ""),
        f", {state.busy_s:,.1f} s busy",
    )
    if state.last_error:
        yield Text(f"last failure: {state.last_error}", style="red")


def _rounds(status: ServiceStatus, now_unix_s: float) -> Iterator[RenderableType]:
    if not status.rounds:
        yield Text("No round is sealed yet.")
        return
    table = _table("Round", "Model step", "Strategy", "Groups", "Triplets", "Age")
    newest_first = status.rounds[::-1]
    for line in newest_first[:ROUNDS_SHOWN]:
        table.add_row(
            str(line.round_id),
            f"{line.model_step:,}",
            line.strategy,
            f"{line.num_groups:,}",
            f"{line.num_triplets:,}",
            # A service of an older version does not tell it.
            describe_age(now_unix_s - line.created_unix_s) if line.created_unix_s else "",
        )
    yield table
    if len(newest_first) > ROUNDS_SHOWN:
        yield Text(f"and {len(newest_first) - ROUNDS_SHOWN:,} older ones", style="dim")


def _runs(status: ServiceStatus) -> Iterator[RenderableType]:
    if not status.runs:
        yield Text("No run is open yet.")
        return
    table = _table("Run", "Planned", "Committed", "Lag", "Batch rows")
    for run in status.runs:
        table.add_row(
            run.run_id,
            f"{run.planned_steps:,}",
            f"{run.committed_step:,}",
            f"{run.lag_steps:,}",
            f"{run.batch_rows:,}",
        )
    yield table


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        words = title in ("Run", "Strategy")
        table.add_column(title, justify="left" if words else "right", overflow="fold")
    return table
