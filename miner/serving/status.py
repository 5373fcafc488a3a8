"""The answer to GetStatus, put together from the log, the runs and the backend. Blocks on disk."""

from dataclasses import asdict

import miner
from miner.data.row_store import RowStore
from miner.errors import RoundExpiredError
from miner.rounds import RoundLog
from miner.serving.backend import RefreshState
from miner.serving.runs import RunStore
from protos.coalface.v1 import mining_pb2

__all__ = ["status_response"]

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
    """What is served, what is being mined, and which runs are open."""
    return mining_pb2.GetStatusResponse(
        version=miner.__version__,
        dataset_fingerprint=row_store.fingerprint,
        num_rows=row_store.num_rows,
        num_identities=row_store.manifest.num_identities,
        payload_columns=row_store.schema.names[1:],  # the first is row_id
        rounds=_rounds(log),
        refresh=mining_pb2.RefreshStatus(**{**asdict(refresh), "phase": PHASES[refresh.phase]}),
        runs=[
            mining_pb2.RunSummary(
                run_id=run.parameters.run_id,
                planned_steps=run.planned_steps,
                committed_step=run.committed_step,
                batch_rows=run.parameters.batch_rows,
            )
            for run in runs.all()
        ],
    )


def _rounds(log: RoundLog) -> list[mining_pb2.RoundSummary]:
    rounds = []
    for round_id in log.sealed_ids():
        try:
            manifest = log.manifest(round_id)
        except RoundExpiredError:  # retention removed it since it was listed
            continue
        rounds.append(
            mining_pb2.RoundSummary(
                round_id=round_id,
                model_step=manifest.model_step,
                strategy=manifest.strategy,
                num_groups=manifest.num_groups,
                num_rows=manifest.num_rows,
                num_triplets=manifest.num_triplets,
            )
        )
    return rounds
