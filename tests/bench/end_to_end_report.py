"""What a comparison from embeddings to a sealed round found, as a page. Knows the goals."""

from typing import Any

__all__ = ["markdown"]

GOAL_RATIO = {100_000: 10, 300_000: 25, 1_000_000: 60}
GOAL_MEMORY, GOAL_RECALL = 0.5, 0.95
WHOLE = "100000"
"""The size at which theirs is run on all anchors."""
GROWTH_BETWEEN, GOAL_GROWTH = ("100000", "1000000"), 16
BEYOND_AT, GOAL_BEYOND_MB = "1000000", 1000

INTRODUCTION = """\
# From embeddings to a sealed round

Anchors per second, end to end, beside sentence-transformers' `mine_hard_negatives(use_faiss=True)`
on the same vectors, looking as deep ({num_candidates}) and giving as many negatives ({negatives}).
Ours reads the files, checks, searches, selects and writes a round of all rows; a size counts only
if the recall of what each search left is at least {goal}, measured by an exact search of
{judged:,} anchors after the clock has stopped; the manifest's own is of 1,000. Theirs has its
vectors looked up and gives its triplets in memory. Where it got a slice of the anchors, `on its
slice` compares with its speed there; `ratio` with its speed for all anchors, read off the line
through the slice and {few} anchors, which counts once what it does once. Its memory for all is
estimated: libraries and texts, the index, and for each anchor what one took where all anchors were
run; in brackets what the slice took, and the ratio to that.

Medians. Ratios are of medians, in brackets the lowest and highest of a run of ours with the run of
theirs after it. CPU: the ratio in processor seconds. MB: peak of the resident set; beyond: ours
less embeddings and candidates. Valid: anchors with a negative of another identity. Others: the most
cores that other processes took during a run, on average; where that is not near 0, only the next
quiet run can be believed.
"""

Set = dict[str, Any]


def markdown(record: dict[str, dict[str, Set]]) -> str:
    sets = record["sets"]
    first = next(iter(sets.values()))
    told = {name: first[name] for name in ("num_candidates", "negatives", "few", "judged")}
    parts = [
        INTRODUCTION.format(**told, goal=GOAL_RECALL),
        table([compared(int(rows), sets) for rows in sets]),
        "Seconds of ours; writing is what no other phase is:\n",
        table([phases(int(rows), one) for rows, one in sets.items()]),
        *growth(sets),
        *beyond(sets),
        *failures(sets),
        *sources(sets),
    ]
    return "\n".join(parts)


def compared(rows: int, sets: dict[str, Set]) -> dict[str, str]:
    """One row of the table; what a side that failed cannot give is a dash."""
    one = sets[str(rows)]
    ours, theirs = one["medians"]["ours"], one["medians"]["theirs"]
    whole_mb = of_all_anchors_mb(rows, sets) if theirs else None
    runs = [run for side in one["runs"].values() for run in side if "failed" not in run]
    cells = {
        "rows": f"{rows:,}",
        "ours, anchors/s": f"{ours['anchors_per_s']:,.0f}" if ours else "failed",
        "theirs": f"{theirs['anchors_per_s']:,.0f}" if theirs else "failed",
        "its anchors": f"{theirs['anchors']:,}" if theirs else "-",
        **(ratios(rows, one) if ours and theirs else {}),
        "recall@10": recall(one),
        "ours, MB": f"{ours['peak_mb']:,.0f}" if ours else "-",
        "theirs, MB": theirs_mb(theirs, whole_mb) if theirs else "-",
        **({"memory ratio": memory(ours, theirs, whole_mb)} if ours and theirs else {}),
        "beyond, MB": f"{ours['beyond_embeddings_and_candidates_mb']:,.0f}" if ours else "-",
    }
    for side, middle in (("ours", ours), ("theirs", theirs)):
        share = f"{middle['anchors_with_a_valid_negative']:.1%}" if middle else "-"
        cells[f"valid, {side}"] = share
    most = max((run["cores_of_others"] for run in runs), default=0.0)
    return cells | {"others": f"{most:.1f}"}


def ratios(rows: int, one: Set) -> dict[str, str]:
    ours, theirs = one["medians"]["ours"], one["medians"]["theirs"]
    ratio, goal = ours["anchors_per_s"] / theirs["anchors_per_s"], GOAL_RATIO.get(rows)
    on_slice = ours["anchors_per_s"] / theirs.get("slice_per_s", theirs["anchors_per_s"])
    cpu = cpu_per_anchor(theirs) / cpu_per_anchor(ours)
    return {
        "ratio": f"{ratio:.1f}{spread(one)}",
        "on its slice": f"{on_slice:.1f}" if "slice_per_s" in theirs else "-",
        "goal": "-" if goal is None else f"{goal}, {verdict(ratio, on_slice, goal, one)}",
        "CPU": f"{cpu:.1f}",
    }


def verdict(ratio: float, on_slice: float, goal: float, one: Set) -> str:
    if not counts(one) or max(ratio, on_slice) < goal:
        return "**not met**"
    return "met" if ratio >= goal else "met on its slice only"


def spread(one: Set) -> str:
    pairs = zip(one["runs"]["ours"], one["runs"]["theirs"], strict=True)
    found = [
        ours["anchors_per_s"] / theirs["anchors_per_s"]
        for ours, theirs in pairs
        if "failed" not in ours and "failed" not in theirs
    ]
    return f" ({min(found):.1f} to {max(found):.1f})" if len(found) > 1 else ""


def cpu_per_anchor(middle: Set) -> float:
    """By the line of all anchors where there was a slice."""
    seconds = middle.get("all_cpu_s", middle["cpu_s"])
    num_anchors = middle["anchors_per_s"] * middle.get("all_seconds", middle["seconds"])
    return float(seconds / num_anchors)


def of_all_anchors_mb(rows: int, sets: dict[str, Set]) -> float | None:
    """An estimate where theirs got a slice; None where it did not, or nothing shows how to."""
    here, there = sets[str(rows)], sets.get(WHOLE)
    theirs, whole = here["medians"]["theirs"], there and there["medians"]["theirs"]
    if theirs["anchors"] == rows or not there or not whole:
        return None
    row_mb = here["vectors"]["dim"] * 4 / 1e6
    each_mb = (whole["peak_mb"] - whole["peak_before_mb"]) / whole["anchors"] - row_mb
    return float(theirs["peak_before_mb"] + rows * (row_mb + each_mb))


def theirs_mb(theirs: Set, whole_mb: float | None) -> str:
    measured = f"{theirs['peak_mb']:,.0f}"
    return measured if whole_mb is None else f"{whole_mb:,.0f} ({measured})"


def memory(ours: Set, theirs: Set, whole_mb: float | None) -> str:
    ratio = ours["peak_mb"] / (whole_mb or theirs["peak_mb"])
    verdict = "met" if ratio < GOAL_MEMORY else "**not met**"
    to_slice = f" ({ours['peak_mb'] / theirs['peak_mb']:.2f})" if whole_mb else ""
    return f"{ratio:.2f}{to_slice}, {verdict}"


def done(one: Set) -> list[Set]:
    return [run for run in one["runs"]["ours"] if "failed" not in run]


def counts(one: Set) -> bool:
    """Whether every run of ours found enough."""
    return all(
        run["index"].get("kind") == "flat"
        if run["recall"] is None
        else run["judged_recall"]["value"] >= GOAL_RECALL
        for run in done(one)
    )


def recall(one: Set) -> str:
    """The least of the runs, with its interval, and the least of the manifests."""
    measured = [run for run in done(one) if run["recall"] is not None]
    if not measured:
        return "exact" if done(one) and counts(one) else "-"
    judged = min((run["judged_recall"] for run in measured), key=lambda of: float(of["value"]))
    in_manifest = min(float(run["recall"]) for run in measured)
    suffix = "" if counts(one) else ", **does not count**"
    interval = f"{judged['low']:.3f} to {judged['high']:.3f}"
    return f"{judged['value']:.4f} ({interval}; manifest {in_manifest:.4f}){suffix}"


def phases(rows: int, one: Set) -> dict[str, str]:
    ours = one["medians"]["ours"]
    if not ours:
        return {"rows": f"{rows:,}"}
    parts = {name: f"{seconds:.1f}" for name, seconds in ours["phases_s"].items()}
    described = ", ".join(f"{key} {value}" for key, value in done(one)[-1]["index"].items())
    groups = {"groups": f"{ours['groups']:,.0f}"}
    total = {"rows": f"{rows:,}", "in all": f"{ours['seconds']:.1f}"}
    return total | parts | groups | {"index of the last run": described}


def growth(sets: dict[str, Set]) -> list[str]:
    if any(rows not in sets or not sets[rows]["medians"]["ours"] for rows in GROWTH_BETWEEN):
        return []
    small, large = (sets[rows] for rows in GROWTH_BETWEEN)
    seconds = [one["medians"]["ours"]["seconds"] for one in (small, large)]
    times = seconds[1] / seconds[0]
    verdict = "met" if times <= GOAL_GROWTH else "**not met**"
    other = "" if small["code"] == large["code"] else " (of different code)"
    return [
        f"From {int(GROWTH_BETWEEN[0]):,} to {int(GROWTH_BETWEEN[1]):,} rows time grows "
        f"{times:.1f} times{other}; the goal is at most {GOAL_GROWTH}: {verdict}.\n"
    ]


def beyond(sets: dict[str, Set]) -> list[str]:
    ours = sets[BEYOND_AT]["medians"]["ours"] if BEYOND_AT in sets else None
    if not ours:
        return []
    extra_mb = ours["beyond_embeddings_and_candidates_mb"]
    verdict = "met" if extra_mb <= GOAL_BEYOND_MB else "**not met**"
    return [
        f"At {int(BEYOND_AT):,} rows ours took {ours['seconds'] / 60:.1f} minutes and, beyond "
        f"embeddings and candidates, {extra_mb:,.0f} MB; the goal is at most {GOAL_BEYOND_MB:,}: "
        f"{verdict}.\n"
    ]


def failures(sets: dict[str, Set]) -> list[str]:
    lines = [
        f"- {int(rows):,} rows, {side}: {run['failed']}"
        for rows, one in sets.items()
        for side, runs in one["runs"].items()
        for run in runs
        if "failed" in run
    ]
    return ["Runs that failed:\n", *lines, ""] if lines else []


def sources(sets: dict[str, Set]) -> list[str]:
    """Command, code, machine and versions of each size, once where they are the same."""
    of_text: dict[str, list[str]] = {}
    for rows, one in sets.items():
        versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
        text = f"`{one['command']}`, code {one['code']}, on {one['machine']}; {versions}."
        of_text.setdefault(text, []).append(f"{int(rows):,}")
    return [f"{', '.join(rows)} rows: {text}\n" for text, rows in of_text.items()]


def table(rows: list[dict[str, str]]) -> str:
    """Columns in the order in which rows first have them."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    lines = [titles, ["---:"] * len(titles)]
    lines += [[row.get(title, "-") for title in titles] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
