"""What a round inherits: from mined rounds of the same dataset, newest first, and no more."""

import dataclasses

import numpy as np
import pytest

from miner.app.history import read_history
from miner.core import SelectionConfig, mine_round
from miner.errors import DamagedRoundError
from miner.rounds import RoundLog, RoundWriter
from miner.types import Candidates, IdentityTable
from tests.miner.core.selection_oracles import World, search
from tests.miner.rounds.round_samples import bytes_of, make_draft, make_groups

FINGERPRINT = "f" * 64
MOMENTUM = SelectionConfig(momentum_rounds=2)


def seal(writer, seed, *, mined=True, **changes):
    groups = make_groups(6, seed=seed)
    writer.seal(groups, make_draft(weights_sha256="a" * 64 if mined else "", **changes))
    return groups


def test_a_log_without_mined_rounds_gives_an_empty_history(tmp_path):
    log = RoundLog(tmp_path)
    seal(RoundWriter.open(log), 1, mined=False)
    history = read_history(log, MOMENTUM, dataset_fingerprint=FINGERPRINT, model_step=70)
    assert (history.model_step, history.earlier, history.suspects) == (70, (), ())
    assert history.target_hardness is None


def test_momentum_looks_back_on_mined_rounds_of_this_dataset_newest_first(tmp_path):
    log = RoundLog(tmp_path)
    writer = RoundWriter.open(log)
    seal(writer, 1)
    second = seal(writer, 2)
    seal(writer, 3, mined=False)
    fourth = seal(writer, 4)
    seal(writer, 5, dataset_fingerprint="e" * 64)
    history = read_history(log, MOMENTUM, dataset_fingerprint=FINGERPRINT, model_step=0)
    assert [bytes_of(groups) for groups in history.earlier] == [bytes_of(fourth), bytes_of(second)]


def test_a_round_that_is_not_needed_is_not_read(tmp_path):
    log = RoundLog(tmp_path)
    writer = RoundWriter.open(log)
    seal(writer, 1)
    seal(writer, 2)
    for chunk in log.folder(2).glob("*.arrow"):
        chunk.write_bytes(b"")
    config = SelectionConfig()
    assert read_history(log, config, dataset_fingerprint=FINGERPRINT, model_step=0).earlier == ()
    with pytest.raises(DamagedRoundError):
        read_history(log, MOMENTUM, dataset_fingerprint=FINGERPRINT, model_step=0)


def clustered(num_identities: int, size: int) -> World:
    """Identities around centres of their own, but for 0 and 1, which share one."""
    rng = np.random.default_rng(7)
    centres = np.repeat(rng.standard_normal((num_identities, 16)), size, axis=0)
    centres[size : 2 * size] = centres[:size]
    embeddings = centres + 0.4 * rng.standard_normal(centres.shape)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    ids = np.repeat(np.arange(num_identities, dtype=np.int32), size)
    return World(IdentityTable.from_ids(ids), embeddings.astype(np.float32))


def mine(world, config, round_id, history=None):
    def search_world(ids: np.ndarray, num_candidates: int) -> Candidates:
        return search(world, ids.tolist(), num_candidates)

    return mine_round(
        search_world,
        world.embeddings_ND,
        world.identities,
        config,
        seed=1,
        round_id=round_id,
        history=history,
    )


def test_a_steered_curriculum_and_the_quarantine_go_on_through_the_manifest(tmp_path):
    world = clustered(12, 8)
    config = SelectionConfig(
        strategy="curriculum",
        curriculum={"violating_fraction": 0.5, "start": -0.1, "end": 0.1},
        margin=0.4,
        num_candidates=40,
    )
    log = RoundLog(tmp_path)
    writer = RoundWriter.open(log)
    first = mine(world, config, 1)
    assert [pair.identities for pair in first.report.quarantine.pairs] == [[0, 1]]
    report = dataclasses.asdict(first.report)
    writer.seal(first.groups, make_draft(weights_sha256="a" * 64, selection=report))
    history = read_history(log, config, dataset_fingerprint=FINGERPRINT, model_step=9)
    assert history.suspects == ((0, 1),)
    assert history.target_hardness == first.report.target_hardness == -0.1
    second = mine(world, config, 2, history)
    # The same embeddings: what violated when it was mined still does.
    assert second.report.still_violating == pytest.approx(first.report.violating_fraction, abs=0.01)
    moved = -0.1 + 0.25 * (0.5 - second.report.still_violating)
    assert second.report.target_hardness == pytest.approx(min(max(moved, -0.1), 0.1))
