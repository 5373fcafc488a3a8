"""A sealed round as a page of text: how it was made, what came out, what fell short and why.

Reads the manifest alone, and shows what is there: a round of an older version has fewer figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from miner.app.offline.names import RowNames
from miner.core import SelectionConfig
from miner.rounds import RoundManifest

__all__ = ["describe_tiers", "print_round"]

TIERS = ("strategy", "relaxed", "random")
BAR_WIDTH = 36
PAIRS_SHOWN = 8
REASONS = {
    "candidates": "too few other identities among the candidates",
    "guards": "too few candidates pass the guards",
    "strategy": "too few candidates within the strategy",
    "caps": "the caps on use as a negative gave them to harder anchors",
    "identities": "too few other identities have use left, even at random",
}
EXPOSURES = {
    "anchor_exposure": "identities as anchors",
    "identity_exposure": "identities as negatives",
    "sample_exposure": "samples as negatives",
}


def describe_tiers(tiers: Sequence[int]) -> str:
    """Shares of the tiers that occur.

    Example:
        >>> describe_tiers([3, 1, 0])
        'strategy 75.0 %, relaxed 25.0 %'
    """
    total = sum(tiers) or 1
    return ", ".join(
        f"{name} {100 * count / total:.1f} %"
        for name, count in zip(TIERS, tiers, strict=False)
        if count
    )


def print_round(console: Console, manifest: RoundManifest, names: RowNames | None) -> None:
    """Print the page; it fits any width and needs no terminal."""
    console.print(Text(f"Round {manifest.round_id}", style="bold"))
    console.print(_facts(_origin(manifest)))
    report: dict[str, Any] = dict(manifest.selection)
    for title, part in _sections(manifest, report, names):
        console.print()
        console.print(Text(title, style="bold"))
        console.print(part)


def _sections(
    manifest: RoundManifest, report: dict[str, Any], names: RowNames | None
) -> Iterator[tuple[str, RenderableType]]:
    if settings := _settings(manifest):
        yield "Settings that are not the defaults", _facts(settings)
    yield "Triplets", _facts(_outcome(manifest, report))
    if any(report.get("hardness_counts") or ()):
        yield "Hardness s_an - s_ap of the triplets", _histogram(report)
    dropped = {name: count for name, count in (report.get("dropped") or {}).items() if count}
    if dropped:
        counts = {name: f"{count:,}" for name, count in dropped.items()}
        yield "Candidates dropped", _facts(counts)
    if shortfalls := _shortfalls(report):
        yield "Shortfalls", _facts(shortfalls)
    exposures = {EXPOSURES[key]: report[key] for key in EXPOSURES if report.get(key)}
    if exposures:
        yield "Uses in the round", _exposures(exposures)
    if quarantine := report.get("quarantine"):
        yield "Identities that look like one", _suspects(quarantine, names)
    if manifest.phases_s:
        seconds = {phase: f"{value:.1f} s" for phase, value in manifest.phases_s.items()}
        yield "Time", _facts(seconds)


def _origin(manifest: RoundManifest) -> dict[str, str]:
    made = datetime.fromtimestamp(manifest.created_unix_s, UTC)
    index = ", ".join(f"{key} {value}" for key, value in manifest.index.items())
    recall = "" if manifest.recall is None else f", recall {manifest.recall:.4f}"
    return {
        "made": f"{made:%Y-%m-%d %H:%M:%S} UTC",
        "strategy": manifest.strategy,
        "model step": f"{manifest.model_step:,}",
        "seed": str(manifest.seed),
        "index": (index or "none: nothing was searched") + recall,
        "dataset": manifest.dataset_fingerprint[:12],
        "weights or embeddings": manifest.weights_sha256[:12] or "none: made without embeddings",
    }


def _settings(manifest: RoundManifest) -> dict[str, str]:
    defaults = _dotted(SelectionConfig().model_dump(mode="json"))
    chosen = _dotted(manifest.config)
    return {key: str(value) for key, value in chosen.items() if defaults.get(key) != value}


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _dotted(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _outcome(manifest: RoundManifest, report: dict[str, Any]) -> dict[str, str]:
    facts = {
        "groups": f"{manifest.num_groups:,}",
        "rows": f"{manifest.num_rows:,}",
        "triplets": f"{manifest.num_triplets:,}",
    }
    if "num_anchors" in report:
        facts["groups"] += f" of {report['num_anchors']:,} anchors"
    facts |= {
        f"tier {number}, {name}": f"{count:,}"
        for number, (name, count) in enumerate(zip(TIERS, report.get("tiers", ()), strict=False))
    }
    for key, label in (("ap", "positive"), ("an", "negative")):
        if report.get(f"mean_similarity_{key}") is not None:
            value = report[f"mean_similarity_{key}"]
            facts[f"mean s_{key}"] = f"{value:.4f} (anchor and {label})"
    if report.get("violating_fraction") is not None:
        facts["violate the margin"] = f"{100 * report['violating_fraction']:.1f} % of the triplets"
    if report.get("target_hardness") is not None:
        facts["target hardness"] = f"{report['target_hardness']:.4f}"
    if report.get("still_violating") is not None:
        share = f"{100 * report['still_violating']:.1f} %"
        facts["still violate it"] = f"{share} of the last round's triplets"
    return facts


def _shortfalls(report: dict[str, Any]) -> dict[str, str]:
    facts = {}
    if report.get("anchors_short"):
        missing = report.get("negatives_missing", 0)
        facts["anchors"] = f"{report['anchors_short']:,} lack {missing:,} negatives together"
    for reason, count in (report.get("shortfalls") or {}).items():
        facts[reason] = f"{count:,} ({REASONS[reason]})" if reason in REASONS else f"{count:,}"
    for name, count in (report.get("floors_unmet") or {}).items():
        facts[name] = f"{count:,} below it"
    return facts


def _exposures(exposures: dict[str, dict[str, Any]]) -> Table:
    columns = ("min", "median", "max", "gini", "unused")
    table = _table("", *columns)
    for label, figures in exposures.items():
        texts = [f"{figures[key]:,.10g}" if key in figures else "" for key in columns[:3]]
        gini, unused = figures.get("gini"), figures.get("unused")
        texts.append("" if gini is None else f"{gini:.2f}")
        texts.append("" if unused is None else f"{100 * unused:.1f} %")
        table.add_row(Text(label), *map(Text, texts))
    return table


def _histogram(report: dict[str, Any]) -> Table:
    edges, counts = report["hardness_edges"], report["hardness_counts"]
    used = [i for i, count in enumerate(counts) if count]
    highest = max(counts)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="crop")
    for i in range(used[0], used[-1] + 1):
        bar = "#" * max(round(BAR_WIDTH * counts[i] / highest), int(counts[i] > 0))
        style = "red" if edges[i] >= 0 else "green"
        table.add_row(f"{edges[i]:+.2f}", f"{counts[i]:,}", Text(bar, style=style))
    return table


def _suspects(quarantine: dict[str, Any], names: RowNames | None) -> RenderableType:
    pairs = quarantine.get("pairs") or []
    if not pairs and quarantine.get("confusion_rate") is None:
        return Text(f"not looked for, policy {quarantine.get('policy', 'unknown')}")
    policy = f"{len(pairs):,} pairs of {quarantine.get('num_tested', 0):,} tested, policy "
    policy += str(quarantine.get("policy", "unknown"))
    if quarantine.get("confusion_rate") is not None:
        rate = f"{100 * quarantine['confusion_rate']:.1f} %"
        policy += f"\n{rate} of the anchors are nearest to a row of another identity"
    if not pairs:
        return Text(policy)
    table = _table("identities", "samples", "copies", "mixing", "similarity")
    table.columns[0].overflow = "fold"
    for pair in pairs[:PAIRS_SHOWN]:
        both = " = ".join(_name(identity, names) for identity in pair["identities"])
        samples = " + ".join(f"{count:,}" for count in pair.get("num_samples", ()))
        keys = ("num_copies", "mixing", "similarity")
        figures = (f"{pair[key]:.2g}" if key in pair else "" for key in keys)
        table.add_row(Text(both), Text(samples), *map(Text, figures))
    left = len(pairs) - PAIRS_SHOWN
    table.title = (
        policy
        if left <= 0
        else (f"{policy}\nthe first {PAIRS_SHOWN}, all with export --form suspects:")
    )
    table.title_justify, table.title_style = "left", ""
    return table


def _name(identity_id: int, names: RowNames | None) -> str:
    if names is None or not 0 <= identity_id < len(names.identity_names):
        return f"identity {identity_id}"
    return str(names.identity_names[identity_id].as_py())


def _facts(facts: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts.items():
        table.add_row(Text(label), Text(value))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=bool(number))
    return table
