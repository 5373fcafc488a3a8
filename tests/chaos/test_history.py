"""The checker finds each broken promise in a history made by hand, and none in a good one."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.history import check_history
from tests.chaos.records import Record, SealedRound, read_records

GROUPS = {1: ["a", "b", "c", "d"], 2: ["e", "f", "g", "h"]}
"""Two groups a step, each of 4 rows and 2 triplets: a pass takes two steps."""
ROUNDS = {
    round_id: SealedRound(
        round_id=round_id,
        sha256=f"sha{round_id}",
        generation=round_id,
        model_step=(round_id - 1) * 4,
        num_groups=4,
        num_rows=16,
        num_triplets=8,
        groups=Counter(digests),
        max_uses_per_sample=2,
    )
    for round_id, digests in GROUPS.items()
}
READERS = {"solo": 1, "left": 2, "right": 2}


def batch(reader: str, step: int) -> Record:
    """Steps 0 to 3 are two passes of round 1, steps 4 to 7 of round 2."""
    round_id, place = 1 + step // 4, step % 2 * 2
    world_size, rank = READERS[reader], int(reader == "right")
    first, stop = (0, 2) if world_size == 1 else (rank, rank + 1)
    groups = GROUPS[round_id][place + first : place + stop]
    return {
        "kind": "batch",
        "reader": reader,
        "run": "r",
        "step": step,
        "rank": rank,
        "world_size": world_size,
        "digest": f"{step}-{rank}-{world_size}",
        "round": round_id,
        "model_step": (round_id - 1) * 4,
        "staleness_steps": step - (round_id - 1) * 4,
        "over_stale": False,
        "pass": step % 4 // 2,
        "rows": 4 * len(groups),
        "triplets": 2 * len(groups),
        "global_rows": 8,
        "global_groups": 2,
        "first_group": first,
        "groups": groups,
        "negatives": [place + i for i in range(first, stop) for _ in range(2)],
        "clashes": [],
    }


def start(reader: str, first_step: int) -> Record:
    return {
        "kind": "start",
        "reader": reader,
        "run": "r",
        "rank": int(reader == "right"),
        "world_size": READERS[reader],
        "first_step": first_step,
        "stale": "wait",
        "max_staleness_steps": 3,
    }


def good() -> list[Record]:
    """One process trains steps 0 to 4, dies after its checkpoint at 3, two go on from there."""
    return [
        start("solo", 0),
        *(batch("solo", step) for step in range(5)),
        {"kind": "checkpoint", "run": "r", "step": 3},
        start("left", 3),
        start("right", 3),
        *(batch(reader, step) for step in range(3, 8) for reader in ("left", "right")),
        {"kind": "checkpoint", "run": "r", "step": 8},
        *({"kind": "sealed", "round": i, "sha256": f"sha{i}"} for i in (1, 2)),
        {"kind": "memory", "num_clients": 2, "num_bytes": 2000},
    ]


def of(history: list[Record], reader: str, step: int) -> Record:
    return next(r for r in history if r.get("reader") == reader and r.get("step") == step)


def changed(reader: str, step: int, **values: Any) -> Callable[[list[Record]], None]:
    return lambda history: of(history, reader, step).update(values)


def read_again(history: list[Record]) -> None:
    again = start("solo", 2) | {"reader": "solo again"}
    history += [again, batch("solo", 2) | {"reader": "solo again", "digest": "other"}]


def drop(reader: str, step: int) -> Callable[[list[Record]], None]:
    return lambda history: history.remove(of(history, reader, step))


def repeat(history: list[Record]) -> None:
    place = history.index(of(history, "left", 5))
    history.insert(place, copy.deepcopy(of(history, "left", 4)))


def begin_late(history: list[Record]) -> None:
    history.append(start("solo", 11) | {"reader": "late"})


def swap_groups(history: list[Record]) -> None:
    """World size 2 gets, of step 3, another group than world size 1 did."""
    of(history, "right", 3)["groups"] = ["a"]


def both_have_one(history: list[Record]) -> None:
    of(history, "right", 6).update(first_group=0, groups=["e"])


def overuse(history: list[Record]) -> None:
    of(history, "left", 6)["negatives"] = [0, 0, 0]


def sealed_by_two(history: list[Record]) -> None:
    history.append({"kind": "sealed", "round": 2, "sha256": "another"})


def never_found(history: list[Record]) -> None:
    history.append({"kind": "sealed", "round": 3, "sha256": "sha3"})


def hoard(history: list[Record]) -> None:
    history.append({"kind": "memory", "num_clients": 2, "num_bytes": 2001})


def refuse(text: str) -> Callable[[list[Record]], None]:
    record = {"kind": "refused", "reader": "left", "error": "FeedError", "text": text}
    return lambda history: history.append(record)


BROKEN: list[tuple[str, str, Callable[[list[Record]], None]]] = [
    ("P1", "'solo again' read other bytes", read_again),
    ("P2", "a gap", drop("solo", 1)),
    ("P2", "a repeat", repeat),
    ("P2", "a start elsewhere", drop("left", 3)),
    ("P3", "a step that was read in part", drop("right", 7)),
    ("P3", "a start beyond the checkpoint", begin_late),
    ("P3", "another world size, another batch", swap_groups),
    ("P4", "two rounds at a step", changed("right", 5, round=1)),
    ("P4", "two global batches at a step", changed("right", 5, global_rows=12)),
    ("P4", "a group on both ranks", both_have_one),
    ("P4", "rows that nobody got", changed("left", 5, rows=3)),
    ("P4", "a rank without a group", changed("left", 5, groups=[])),
    ("staleness", "it is told wrongly", changed("solo", 1, staleness_steps=0)),
    ("staleness", "above the bound", changed("solo", 3, over_stale=True)),
    ("P5", "a round that nobody sealed", changed("solo", 0, round=9)),
    ("P5", "weights of another round", changed("solo", 0, model_step=1)),
    ("P5", "a group of no round", changed("solo", 0, groups=["a", "x"])),
    ("P5", "a pass with too few triplets", changed("solo", 0, triplets=1)),
    ("P2", "a group twice in a pass", changed("solo", 0, groups=["a", "c"])),
    ("P6", "a round replaced", sealed_by_two),
    ("P6", "a round lost", never_found),
    ("P7", "a negative of the anchor's identity", changed("left", 3, clashes=[[4, 5]])),
    ("P7", "a row above the cap", overuse),
    ("P8", "too much memory", hoard),
    ("refusal", "a round is lost that nobody damaged", refuse("round 2 is damaged [DATA_LOSS]")),
    ("refusal", "the miner fails with no fault of the disk", refuse("KeyError [INTERNAL]")),
    ("refusal", "a round has expired", refuse("round 1 has expired [NOT_FOUND]")),
]


def violations(history: list[Record]) -> list[str]:
    return [v.promise for v in check_history(history, ROUNDS, max_bytes_per_client=1000)]


def test_a_good_history_has_no_violation() -> None:
    assert check_history(good(), ROUNDS, max_bytes_per_client=1000) == []


@pytest.mark.parametrize(("promise", "what", "break_it"), BROKEN, ids=[b[1] for b in BROKEN])
def test_a_broken_promise_is_found(
    promise: str, what: str, break_it: Callable[[list[Record]], None]
) -> None:
    history = good()
    break_it(history)
    found = violations(history)
    assert promise in found, what


def test_a_writer_that_seals_after_its_successor_is_found() -> None:
    stale = {**ROUNDS, 3: SealedRound(3, "sha3", 1, 8, 4, 16, 8, Counter("ijkl"))}
    (found,) = check_history(good(), stale)
    assert (found.promise, "stale writer" in found.evidence) == ("P6", True)


def test_what_faults_explain_is_no_violation() -> None:
    history = good()
    refuse("round 2 is damaged at chunk-0: no [DATA_LOSS]")(history)
    refuse("No space left on device (failpoint journal.append.begin) [INTERNAL]")(history)
    assert check_history(history, ROUNDS, damaged=frozenset({2})) == []


def test_the_evidence_names_who_read_what() -> None:
    history = good()
    read_again(history)
    (found,) = check_history(history, ROUNDS)
    assert found.evidence == ("run r step 2 rank 0 of 1: solo read 2-0-1, solo again read other")


def test_every_promise_that_can_be_seen_has_its_broken_history() -> None:
    assert {promise for promise, _, _ in BROKEN} == {f"P{i}" for i in range(1, 9)} | {
        *("staleness", "refusal")
    }


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in good()]
    (tmp_path / "a").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    assert list(read_records([tmp_path / "a"])) == good()[:3]
