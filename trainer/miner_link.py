"""The miner over gRPC, as the training loop wants it."""

from __future__ import annotations

from pathlib import Path

from trainer.announcer import MinerLink
from trainer.config import TrainerConfig
from trainer.distributed import World
from trainer.feed import MinerClient, TlsFiles, TripletFeed

__all__ = ["GrpcMiner"]

COMMIT_PATIENCE_S = 2.0  # advisory: the next commit says it again


class GrpcMiner:
    """Opens feeds of one run and tells the miner of its weights and checkpoints."""

    def __init__(self, config: TrainerConfig) -> None:
        self._config = config
        tls = config.miner.tls
        self._tls = None if tls is None else TlsFiles(**dict(tls))

    def open_feed(self, world: World, first_step: int) -> TripletFeed:
        """The batches of this rank from ``first_step`` to the end of the run, with samples."""
        config, miner = self._config, self._config.miner
        return TripletFeed(
            miner.address,
            run_id=config.run_id,
            batch_rows=config.batch_rows,
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
            first_step=first_step,
            num_steps=config.steps - first_step,
            prefetch_steps=miner.prefetch_steps,
            patience_s=miner.patience_s,
            exhausted=miner.exhausted,
            stale=miner.stale,
            max_staleness_steps=miner.max_staleness_steps,
            tls=self._tls,
            token_file=miner.token_file,
        )

    def link(self) -> MinerLink:
        """Announcements and commits, each over a connection of its own."""
        return MinerLink(announce=self._announce, commit=self._commit)

    def _announce(self, step: int, uri: str, sha256: str) -> bool:
        with self._client(self._config.miner.patience_s) as client:
            if self._config.miner.upload_weights:
                return client.upload(step=step, path=Path(uri), sha256=sha256)
            return client.announce(step=step, uri=uri, sha256=sha256)

    def _commit(self, step: int) -> None:
        with self._client(COMMIT_PATIENCE_S) as client:
            client.commit(self._config.run_id, step)

    def _client(self, patience_s: float) -> MinerClient:
        miner = self._config.miner
        return MinerClient(
            miner.address, patience_s=patience_s, tls=self._tls, token_file=miner.token_file
        )
