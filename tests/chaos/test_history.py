"""The checker finds each broken promise in a history made by hand, and none in a good one."""

from __future__ import annotations

import ast
import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import history as checker
from tests.chaos.history import AGREED, MARGIN_S, check_history
from tests.chaos.records import Record, Rounds, SealedRound, read_records

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


def launched(reader: str) -> Record:
    return {"kind": "launched", "reader": reader, "run": "r"}


def checkpoint(step: int) -> Record:
    return {"kind": "checkpoint", "run": "r", "step": step}


def refused(text: str, at_s: float = 0.0) -> Record:
    told = {"error": "RoundLostError", "text": text, "at_s": at_s}
    return {"kind": "refused", "reader": "left", **told}


def lost(at_s: float, round_id: int = 2) -> Record:
    return refused(f"round {round_id} is damaged at chunk-0: no [DATA_LOSS]", at_s)


def good() -> list[Record]:
    """One process trains steps 0 to 4, dies after its checkpoint at 3, two go on from there.

    One that would have gone on was killed before it began.
    """
    return [
        launched("solo"),
        start("solo", 0),
        *(batch("solo", step) for step in range(5)),
        checkpoint(3),
        launched("nobody"),
        *(launched(reader) for reader in ("left", "right")),
        *(start(reader, 3) for reader in ("left", "right")),
        *(batch(reader, step) for step in range(3, 8) for reader in ("left", "right")),
        checkpoint(8),
        *({"kind": "sealed", "round": i, "sha256": f"sha{i}"} for i in (1, 2)),
        {"kind": "memory", "num_clients": 2, "num_bytes": 2000},
        {"kind": "damaged", "round": 2, "begin_s": 100.0, "end_s": 104.0},
        *(lost(at_s) for at_s in (100.0, 102.0, 104.0 + MARGIN_S)),
    ]


Break = Callable[[list[Record]], None]


def of(history: list[Record], reader: str, step: int) -> Record:
    return next(r for r in history if r.get("reader") == reader and r.get("step") == step)


def changed(reader: str, step: int, **values: Any) -> Break:
    return lambda history: of(history, reader, step).update(values)


def added(*records: Record) -> Break:
    return lambda history: history.extend(copy.deepcopy(records))


def drop(reader: str, step: int) -> Break:
    return lambda history: history.remove(of(history, reader, step))


def repeat(history: list[Record]) -> None:
    place = history.index(of(history, "left", 5))
    history.insert(place, copy.deepcopy(of(history, "left", 4)))


def found_checkpoint(step: int) -> Break:
    """A process that was to go on from step 8 found another checkpoint."""
    return added(launched("late"), start("solo", step) | {"reader": "late"})


def differ(name: str) -> Break:
    """The right rank reads step 5 with another value than the left one."""
    return lambda history: of(history, "right", 5).update({name: 77})


def bound(policy: str, steps: int) -> Break:
    """The run has another bound, and its batches are marked by the old one."""

    def break_it(history: list[Record]) -> None:
        for record in history:
            if record["kind"] == "start":
                record.update(stale=policy, max_staleness_steps=steps)

    return break_it


def waits_in_vain(history: list[Record]) -> None:
    """Step 3 is 3 steps stale, rightly told and marked, in a run that waits at 2."""
    bound("wait", 2)(history)
    for record in history:
        if record["kind"] == "batch":
            record["over_stale"] = record["staleness_steps"] > 2


def marked(history: list[Record]) -> None:
    """Step 3 is 3 steps stale, told and marked, in a run that is served above 2."""
    waits_in_vain(history)
    bound("serve", 2)(history)


def read_in_part(history: list[Record]) -> None:
    """Of a pass that is over; nothing of it is trained."""
    history.remove(checkpoint(8))
    drop("right", 5)(history)
    drop("right", 6)(history)
    drop("right", 7)(history)


def end_within_a_pass(history: list[Record]) -> None:
    history.remove(checkpoint(8))
    drop("left", 7)(history)
    drop("right", 7)(history)


HARMLESS: list[tuple[str, Break]] = [
    ("a run without a bound", bound("wait", 0)),
    ("a batch that is marked and served above the bound", marked),
    ("steps that not every rank has read yet", read_in_part),
    ("a pass that goes on", end_within_a_pass),
    ("a round that was damaged and nobody asked for", lambda history: history.remove(lost(102.0))),
]

BROKEN: list[tuple[str, str, Break]] = [
    (
        "P1",
        "run r step 2 rank 0 of 1: solo read 2-0-1, solo again read other",
        added(
            start("solo", 2) | {"reader": "solo again"},
            batch("solo", 2) | {"reader": "solo again", "digest": "other"},
        ),
    ),
    ("P2", "solo got step 2 where 1 was due", drop("solo", 1)),  # a gap
    ("P2", "left got step 4 where 5 was due", repeat),
    ("P2", "left got step 4 where 3 was due", drop("left", 3)),  # not where it asked for
    ("P3", r"step 7 is trained, but was read by \(rank, of\) \[\(0, 2\)\]", drop("right", 7)),
    ("P3", "step 8 is trained, but was read", added(checkpoint(9))),
    ("P3", "late of run r began at step 11, the checkpoint was at 8", found_checkpoint(11)),
    ("P3", "late of run r began at step 3, the checkpoint was at 8", found_checkpoint(3)),
    ("P3", "step 3 has other groups at world size 1 and 2", changed("right", 3, groups=["a"])),
    *(("P4", rf"step 5: left and right differ in {name} \(", differ(name)) for name in AGREED),
    (
        "P4",
        "step 6 rank 1 of 2: its 1 groups begin at 0, not 1",
        changed("right", 6, first_group=0),
    ),
    ("P4", "step 5 rank 0 of 2: its 0 groups begin at 0, not 0", changed("left", 5, groups=[])),
    ("P4", "2 ranks got 2 groups and 7 rows of 2 and 8", changed("left", 5, rows=3)),
    ("P4", "2 ranks got 3 groups and 8 rows of 2", changed("right", 5, groups=["h", "g"])),
    ("staleness", "solo step 1: told 0, the round's", changed("solo", 1, staleness_steps=0)),
    ("staleness", "over_stale is True for 3 steps and .* 3", changed("solo", 3, over_stale=True)),
    ("staleness", "over_stale is False for 3 steps and the bound 2", bound("serve", 2)),
    ("staleness", "over_stale is False for 3 steps and the bound 2", bound("wait", 2)),
    ("staleness", "solo step 3: 3 is above 2", waits_in_vain),
    ("P4", "run r step 1: round 1 came after 2", changed("solo", 0, round=2)),
    ("P5", "solo step 0: round 9 was never sealed", changed("solo", 0, round=9)),
    (
        "P5",
        r"solo step 0: model step 1, groups \[\] are not those",
        changed("solo", 0, model_step=1),
    ),
    ("P5", r"groups \['x'\] are not those of round 1", changed("solo", 0, groups=["a", "x"])),
    ("P5", r"pass 0 of round 1 has \(3, 16, 8\) groups, rows", changed("solo", 0, groups=["a"])),
    ("P5", r"pass 0 of round 1 has \(4, 15, 8\) groups, rows", changed("solo", 0, rows=7)),
    ("P5", r"pass 0 of round 1 has \(4, 16, 5\) groups, rows", changed("solo", 0, triplets=1)),
    ("P2", "groups come too often: {'c': 1}", changed("solo", 0, groups=["a", "c"])),
    (
        "P6",
        "round 2 was sealed as another, found: sha2",
        added({"kind": "sealed", "round": 2, "sha256": "another"}),
    ),
    (
        "P6",
        "round 3 was sealed as sha3, found: no such round",
        added({"kind": "sealed", "round": 3, "sha256": "sha3"}),
    ),
    ("P7", r"left step 3: .* identity: .*\[\[4, 5\]\]", changed("left", 3, clashes=[[4, 5]])),
    ("P7", "negatives more than 2 times: {0: 5}", changed("left", 6, negatives=[0] * 5)),
    (
        "P8",
        "2001 bytes are held for 2 clients",
        added({"kind": "memory", "num_clients": 2, "num_bytes": 2001}),
    ),
    ("refusal", r"left got .*: round 1 is damaged", added(lost(102.0, round_id=1))),
    ("refusal", r"left got .*: round 2 is damaged", added(lost(99.9))),
    ("refusal", r"left got .*: round 2 is damaged", added(lost(104.1 + MARGIN_S))),
    ("refusal", r"left got .*: KeyError", added(refused("KeyError [INTERNAL]", 102.0))),
    (
        "refusal",
        r"left got .*: round 2 has",
        added(refused("round 2 has expired [NOT_FOUND]", 102)),
    ),
    ("refusal", r"left got .*: round 2 is", added(refused("round 2 is damaged [INTERNAL]", 102.0))),
]

Check = Callable[..., list[Any]]


def found(case: tuple[str, str, Break], check: Check = check_history) -> bool:
    promise, evidence, break_it = case
    history = good()
    break_it(history)
    violations = check(history, ROUNDS, max_bytes_per_client=1000)
    return any(v.promise == promise and re.search(evidence, v.evidence) for v in violations)


def stale_writer_found(check: Check = check_history) -> bool:
    """Round 3 is sealed by the first writer, after the second had begun."""
    rounds: Rounds = {**ROUNDS, 3: replace(ROUNDS[1], round_id=3, sha256="sha3")}
    (violation,) = check(good(), rounds) or [None]
    return violation is not None and "round 3 is of generation 1" in violation.evidence


def is_quiet(break_it: Break, check: Check = check_history) -> bool:
    history = good()
    break_it(history)
    return check(history, ROUNDS, max_bytes_per_client=1000) == []


def is_quiet_without_limits(check: Check = check_history) -> bool:
    rounds = {i: replace(sealed, max_uses_per_sample=None) for i, sealed in ROUNDS.items()}
    return check(good(), rounds) == []


def test_a_good_history_has_no_violation() -> None:
    assert check_history(good(), ROUNDS, max_bytes_per_client=1000) == []
    assert is_quiet_without_limits()


@pytest.mark.parametrize("case", HARMLESS, ids=[what for what, _ in HARMLESS])
def test_what_may_happen_is_no_violation(case: tuple[str, Break]) -> None:
    assert is_quiet(case[1])


@pytest.mark.parametrize("case", BROKEN, ids=[f"{b[0]} {b[1]}" for b in BROKEN])
def test_a_broken_promise_is_found(case: tuple[str, str, Break]) -> None:
    assert found(case)


def test_a_writer_that_seals_after_its_successor_is_found() -> None:
    assert stale_writer_found()


class Without(ast.NodeTransformer):
    """Leaves out what comes so-many-eth: a violation told, or one part of a condition."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.what = ""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Yield) and self._is_due(node):
            return ast.parse("if False:\n yield").body[0]
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        kept = [part for part in node.values if not self._is_due(part)]
        return self.generic_visit(ast.BoolOp(node.op, kept) if len(kept) > 1 else kept[0])

    def _is_due(self, node: ast.AST) -> bool:
        self.number -= 1
        if self.number == -1:
            self.what = ast.unparse(node)
        return self.number == -1


def mutants() -> Iterator[tuple[str, Check]]:
    """What is left out, and the checker without it."""
    source = Path(checker.__file__).read_text()
    for number in range(1000):
        without = Without(number)
        tree = ast.fix_missing_locations(without.visit(ast.parse(source)))
        if not without.what:
            return
        namespace: dict[str, Any] = {"__name__": checker.__name__}
        exec(compile(tree, "mutant", "exec"), namespace)
        yield without.what, namespace["check_history"]


def is_right(check: Check) -> bool:
    """As far as the histories of this file tell."""
    try:
        is_good = is_quiet_without_limits(check) and all(is_quiet(b, check) for _, b in HARMLESS)
        return is_good and all(found(case, check) for case in BROKEN) and stale_writer_found(check)
    except Exception:  # whatever it is, it is noticed
        return False


def test_nothing_can_be_left_out_of_the_checker_unnoticed() -> None:
    unnoticed = {what: is_right(check) for what, check in mutants()}
    assert len(unnoticed) > 25
    assert [what for what, is_unnoticed in unnoticed.items() if is_unnoticed] == []


def test_every_promise_that_can_be_seen_has_its_broken_history() -> None:
    assert {promise for promise, _, _ in BROKEN} == {f"P{i}" for i in range(1, 9)} | {
        *("staleness", "refusal")
    }


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in good()]
    (tmp_path / "a").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    assert list(read_records([tmp_path / "a"])) == good()[:3]
