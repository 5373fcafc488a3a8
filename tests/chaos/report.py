"""A storm's outcome as `tests/bench/results` has it: figures for programs and for people."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from tests.chaos.storm import Outcome

__all__ = ["write_report"]


def write_report(outcome: Outcome, folder: Path, command: str) -> None:
    """Write ``chaos.json`` and ``chaos.md``."""
    figures = {
        "command": command,
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "cores": os.cpu_count(),
        "seed": outcome.seed,
        "seconds": round(outcome.seconds),
        "num_steps": sum(outcome.steps.values()),
        "steps": outcome.steps,
        "num_batches": outcome.num_batches,
        "num_rounds": outcome.num_rounds,
        "num_readers": outcome.num_readers,
        "num_faults": outcome.faults.total(),
        "faults": dict(sorted(outcome.faults.items())),
        "faults_without_effect": dict(sorted(outcome.unseen.items())),
        "failpoints": [
            {"program": program, "failpoint": setting, "armed": armed, "fired": fired}
            for (program, setting), (armed, fired) in outcome.failpoints.items()
        ],
        "refusals": dict(sorted(outcome.refusals.items())),
        "num_over_stale": outcome.num_over_stale,
        "peak_bytes": outcome.peak_bytes[0],
        "bytes_without_clients": outcome.peak_bytes[1],
        "peak_bytes_per_client": outcome.peak_bytes_per_client,
        "verified": outcome.verified,
        "violations": [f"{v.promise}: {v.evidence}" for v in outcome.violations],
    }
    (folder / "chaos.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    (folder / "chaos.md").write_text(_page(outcome, command), "utf-8")


def _page(outcome: Outcome, command: str) -> str:
    steps = ", ".join(f"{run} {number:,}" for run, number in outcome.steps.items())
    lines = [
        "# Chaos",
        "",
        f"`{command}`: {outcome.faults.total()} faults over {sum(outcome.steps.values()):,} "
        f"trained steps ({steps}) in {outcome.seconds:.0f} s; {outcome.num_batches:,} batches read "
        f"by {outcome.num_readers} rank processes out of {outcome.num_rounds} rounds, "
        f"{outcome.num_over_stale:,} of them above their run's bound of staleness, and marked so. "
        f"**{len(outcome.violations)} violations** of the promises P1 to P8.",
        "",
        "A fault counts once its effect is seen: a process that was alive is killed or stands "
        "still, connections are cut, a write is refused, a failpoint has acted, a client is told "
        "of the damage. Tried again, and still without effect: "
        f"{_listed(outcome.unseen)}.",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {name} | {times} |" for name, times in sorted(outcome.faults.items())),
        "",
        f"Failpoints: {sum(armed for armed, _ in outcome.failpoints.values())} armed, "
        f"{sum(fired for _, fired in outcome.failpoints.values())} acted before the next kill. "
        "Two of them stay armed for as long as a disk is full.",
        "",
        "| program | failpoint and action | armed | acted |",
        "|---|---|---|---|",
        *(
            f"| {program} | {setting} | {armed} | {fired} |"
            for (program, setting), (armed, fired) in outcome.failpoints.items()
        ),
        "",
        f"The miner held {outcome.peak_bytes[0] / 2**20:.0f} MiB at most, "
        f"{outcome.peak_bytes[1] / 2**20:.0f} MiB without clients; looked at after each fault, "
        f"it was {outcome.peak_bytes_per_client / 2**20:.1f} MiB a client more at most.",
        "",
        f"Verified afterwards, as by `coalface-miner verify`: {', '.join(outcome.verified)}.",
        "",
        "Refusals that clients met and outlived, each explained by a fault: "
        f"{_listed(outcome.refusals)}.",
        *(f"- {v.promise}: {v.evidence}" for v in outcome.violations[:50]),
    ]
    return "\n".join(lines) + "\n"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {times}" for name, times in sorted(counts.items())) or "none"
