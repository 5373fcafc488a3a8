"""What a side by side comparison found, as a page."""

__all__ = ["markdown"]

INTRODUCTION = """\
# Side by side with sentence-transformers' `mine_hard_negatives`

`{command}`

Every row is an anchor and is to get {negatives} negatives out of all rows. The columns:

- same identity, itself, planted duplicate: shares of the negatives that are of the anchor's
  identity, are the anchor, are of the identity that was planted as another name of it;
- Gini, most used, never used: of the use of rows as negatives; Gini, others: where only negatives
  of other identities count; Gini, ids: of identities;
- under 5: anchors that got fewer; under 5 true: fewer after the wrong ones are left out;
- similarity: mean to the anchor, of the true ones;
- s, CPU s: wall and processor time, exact search included, on a machine that had other work.

A row is used 5 times on average. In the small sets floors and caps ask for 3 to 6 uses of a row and
at most 60 of an identity, caps for at most 6 and 60; in the large set it is 3 to 6 and 10,000, and
8 and 300.
"""

COLUMNS = (
    ("same identity", lambda arm: f"{arm['same_identity']:.2%}"),
    ("itself", lambda arm: f"{arm['anchor_itself']:.2%}"),
    ("planted duplicate", lambda arm: f"{arm['planted_duplicate']:.2%}"),
    ("Gini, rows", lambda arm: f"{arm['gini_of_rows']:.3f}"),
    ("Gini, others", lambda arm: f"{arm['gini_of_rows_of_others']:.3f}"),
    ("Gini, ids", lambda arm: f"{arm['gini_of_identities']:.3f}"),
    ("most used", lambda arm: f"{arm['most_used_row']:,}"),
    ("never used", lambda arm: f"{arm['rows_never_used']:,}"),
    ("under 5", lambda arm: f"{arm['anchors_underfilled']:,}"),
    ("under 5 true", lambda arm: f"{arm['anchors_without_5_true_negatives']:,}"),
    ("similarity", lambda arm: f"{arm['mean_similarity_of_true_negatives']:.3f}"),
    ("s", lambda arm: f"{arm['seconds']:.1f}"),
    ("CPU s", lambda arm: f"{arm['cpu_s']:.1f}" if "cpu_s" in arm else "not taken"),
)


def say(found: dict) -> str:
    """The goals as text."""

    def ratios(key: str) -> str:
        return ", ".join(
            f"{ratio:.2f} ({name.removeprefix('theirs: ')})" for name, ratio in found[key].items()
        )

    yes_no = {True: "yes", False: "**no**"}
    return (
        "In every arm of ours: no negative of the anchor's identity: "
        f"{yes_no[found['no_negative_of_the_anchors_identity']]}; caps exact: "
        f"{yes_no[found['caps_hold']]}. Gini of rows, our first arm's over theirs: "
        f"{ratios('gini_over_theirs')}. Where of their negatives only those of other identities "
        f"count: {ratios('gini_of_others_over_theirs')}.\n"
    )


def markdown(record: dict) -> str:
    parts = [INTRODUCTION.format(command=record["command"], negatives=record["negatives"])]
    for name, result in record["sets"].items():
        made, sizes = result["set"], result["set"]["sizes"]
        rows = [
            ["miner", *(title for title, _ in COLUMNS)],
            ["---", *["---:"] * len(COLUMNS)],
            *([arm, *(show(own) for _, show in COLUMNS)] for arm, own in result["arms"].items()),
        ]
        parts += [
            f"## {name}: {made['num_rows']:,} rows, {made['num_identities']:,} identities\n",
            f"{sizes['min']} to {sizes['max']} rows each, median {sizes['median']:g}; "
            f"{made['dim']} dimensions; {made['planted_pairs']} planted pairs; the nearest row is "
            f"of another identity for {made['nearest_row_of_another_identity']:.1%} of rows "
            f"(of the planted one for {made['nearest_row_of_planted_duplicate']:.1%}).\n",
            "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n",
            say(result["goals"]),
        ]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    parts += [record["note"] + "\n"] if "note" in record else []
    return "\n".join(parts) + f"\n{record['machine']}; {versions}\n"
