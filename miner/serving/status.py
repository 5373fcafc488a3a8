"""What is told of rounds, runs and the refresh, put together for the wire. Blocks on disk."""

import heapq
import logging
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import miner
from miner.data.row_store import RowStore
from miner.errors import DamagedRoundError, DiskError, RoundExpiredError, RoundLogError
from miner.rounds import RoundLog, RoundManifest
from miner.serving.backend import RefreshState
from miner.serving.runs import Run, RunStore
from protos.coalface.v1 import mining_pb2

__all__ = ["round_page", "status_response", "whole_round"]

logger = logging.getLogger(__name__)

MAX_LISTED = 1000
"""Rounds, and runs, that a status tells of, and characters of its error: less than 4 MiB in all."""

MAX_MANIFEST = 3 * 2**20
"""Characters of a manifest, which fit a message of 4 MiB."""

PHASES = {
    "idle": mining_pb2.REFRESH_PHASE_IDLE,
    "embedding": mining_pb2.REFRESH_PHASE_EMBEDDING,
    "searching": mining_pb2.REFRESH_PHASE_SEARCHING,
    "selecting": mining_pb2.REFRESH_PHASE_SELECTING,
    "sealing": mining_pb2.REFRESH_PHASE_SEALING,
}


def status_response(
    log: RoundLog, runs: RunStore, row_store: RowStore, refresh: RefreshState
) -> mining_pb2.GetStatusResponse:
    """What is served, what is being mined, and which runs are open.

    Of rounds and runs the newest `MAX_LISTED`. A damaged one is left out, and logged once.
    """
    told = {**asdict(refresh), "phase": PHASES[refresh.phase]}
    told["last_error"] = refresh.last_error[:MAX_LISTED]
    return mining_pb2.GetStatusResponse(
        version=miner.__version__,
        dataset_fingerprint=row_store.fingerprint,
        num_rows=row_store.num_rows,
        num_identities=row_store.manifest.num_identities,
        payload_columns=row_store.schema.names[1:],  # the first is row_id
        rounds=_summaries(log, log.sealed_ids()[-MAX_LISTED:]),
        refresh=mining_pb2.RefreshStatus(**told),
        runs=_run_summaries(runs.all()),
    )


def round_page(log: RoundLog, most: int, before: int) -> mining_pb2.ListRoundsResponse:
    """The newest ``most`` of the sealed rounds before round ``before``, newest first."""
    round_ids = [round_id for round_id in reversed(log.sealed_ids()) if round_id < before]
    return mining_pb2.ListRoundsResponse(
        rounds=_summaries(log, round_ids[:most]),
        next_before_round_id=round_ids[most - 1] if len(round_ids) > most else 0,
    )


def whole_round(log: RoundLog, round_id: int) -> mining_pb2.GetRoundResponse:
    """All that is written about a round; 0 is the newest.

    Raises:
        RoundExpiredError: It was removed, or is not sealed yet.
        DamagedRoundError: Its manifest is damaged.
    """
    manifest = log.manifest(round_id or log.newest() or 1)
    return mining_pb2.GetRoundResponse(
        summary=_summary(manifest), manifest_json=_text(manifest, MAX_MANIFEST)
    )


def _summaries(log: RoundLog, round_ids: Iterable[int]) -> list[mining_pb2.RoundSummary]:
    """What is told of rounds, in this order; those that expired or are damaged are left out."""
    rounds = []
    for round_id in round_ids:
        try:
            rounds.append(_summary(log.manifest(round_id)))
        except RoundExpiredError:  # retention removed it since it was listed
            continue
        except DamagedRoundError as exc:
            _log_once(str(exc))
    return rounds


def _run_summaries(runs: list[Run]) -> list[mining_pb2.RunSummary]:
    """What is told of the newest runs, in the order given, but for those that are damaged."""
    if len(runs) > MAX_LISTED:
        newest = set(heapq.nsmallest(MAX_LISTED, runs, key=Run.idle_s))
        runs = [run for run in runs if run in newest]
    summaries = []
    for run in runs:
        try:
            committed_step = run.committed_step
        except DiskError:
            raise
        except RoundLogError as exc:
            _log_once(str(exc))
            continue
        summary = mining_pb2.RunSummary(
            run_id=run.parameters.run_id,
            planned_steps=run.planned_steps,
            committed_step=committed_step,
            batch_rows=run.parameters.batch_rows,
        )
        summaries.append(summary)
    return summaries


@lru_cache(MAX_LISTED)
def _log_once(problem: str) -> None:
    logger.error("left out of the status: %s", problem)


def _summary(manifest: RoundManifest) -> mining_pb2.RoundSummary:
    """What is told of a round."""
    return mining_pb2.RoundSummary(
        round_id=manifest.round_id,
        model_step=manifest.model_step,
        strategy=manifest.strategy,
        num_groups=manifest.num_groups,
        num_rows=manifest.num_rows,
        num_triplets=manifest.num_triplets,
        created_unix_s=manifest.created_unix_s,
    )


def _text(manifest: RoundManifest, max_chars: int) -> str:
    """The manifest in JSON; of a list of suspects that is too long for ``max_chars`` the first."""
    text = manifest.model_dump_json(indent=1)
    while len(text) > max_chars:
        quarantine: Any = manifest.selection.get("quarantine") or {}
        pairs = quarantine.get("pairs") or []
        if not pairs:
            break
        shorter = {**quarantine, "pairs": pairs[: len(pairs) // 2]}
        manifest = manifest.model_copy(
            update={"selection": {**manifest.selection, "quarantine": shorter}}
        )
        text = manifest.model_dump_json(indent=1)
    return text
