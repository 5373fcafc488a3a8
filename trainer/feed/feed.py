"""The feed: the whole of Coalface as a training loop sees it.

It knows neither torch nor the wire format. Shape legend: I = identities.

Lifecycle: ``NEW --open()--> OPEN --(last step, or close())--> CLOSED``; iterating opens it. A
closed feed may be opened again and goes on from its position.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.errors import ConfigError, MinerUnreachableError, ProtocolError
from trainer.feed.access import TlsFiles
from trainer.feed.batch import TripletBatch
from trainer.feed.client import ExhaustedPolicy, MinerClient, RunParameters, StalePolicy
from trainer.feed.figures import FeedFigures, FeedTally
from trainer.feed.prefetch import Prefetcher, Subscription

__all__ = ["TripletFeed"]

logger = logging.getLogger(__name__)

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

COMMIT_PATIENCE_S = 2.0
RANDOM = "random"


@dataclass(eq=False)
class TripletFeed:
    """Batches of hard triplets from a miner, in step order, without a gap or a repeat.

    A miner that is restarted, moved or drained costs time and no batch: from any step on, a run's
    batches are the same bytes, whoever asks and however often. So a trainer's whole position is
    one number: save :attr:`position` with the weights, pass it as ``first_step`` after a restart.

    Attributes:
        address: ``host:port`` of ``coalface-miner serve``.
        run_id: Names this training run on the miner; the same name finds the same batches again.
        batch_rows: Upper bound on the rows of a global batch, over all ranks.
        seed: Keys the order of the groups.
        rank: This process, in ``[0, world_size)``; ranks get disjoint whole groups of a batch.
        world_size: Processes that share each global batch; may change between restarts.
        first_step: The step to begin with.
        num_steps: Steps to read; None for no end.
        with_payload: Whether the samples come along, so that no copy of the dataset is needed.
        prefetch_steps: Batches that are read ahead, at most. Each is planned, so a new round takes
            effect only after those and the rest of the miner's stride.
        patience_s: Seconds without a sign of life after which the miner counts as gone.
        idle_s: Seconds without a heartbeat, a batch or a part of one after which a stream is given
            up and asked for again over a new connection.
        exhausted: When the newest round is used up: "repeat" it reshuffled, or "wait".
        stale: When staleness would pass ``max_staleness_steps``: "serve" it marked, or "wait".
        max_staleness_steps: That bound in optimizer steps; 0 for none.
        dataset_fingerprint: Refuse a miner that serves another dataset; empty: any.
        tls: Certificates, where the miner is configured with them; None: unencrypted.
        token_file: File of the token to show; None: the environment's ``COALFACE_TOKEN``, if set.
        stalled_s: Seconds that the loop has waited for batches so far.

    Example::

        with TripletFeed("miner:50051", run_id="faces-1", batch_rows=192) as feed:
            for batch in feed:
                embeddings = model(preprocess(batch.samples))
                loss = criterion(embeddings, batch)
                ...
    """

    address: str
    _: KW_ONLY
    run_id: str
    batch_rows: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    first_step: int = 0
    num_steps: int | None = None
    with_payload: bool = True
    prefetch_steps: int = 4
    patience_s: float = 300.0
    idle_s: float = 30.0
    exhausted: ExhaustedPolicy = "repeat"
    stale: StalePolicy = "serve"
    max_staleness_steps: int = 0
    dataset_fingerprint: str = ""
    tls: TlsFiles | None = None
    token_file: Path | None = None
    stalled_s: float = field(default=0.0, init=False)
    _tally: FeedTally = field(default_factory=FeedTally, init=False, repr=False)
    _position: int = field(init=False, repr=False)
    _prefetcher: Prefetcher | None = field(default=None, init=False, repr=False)
    _finalizer: weakref.finalize[..., TripletFeed] | None = field(
        default=None, init=False, repr=False
    )

    def __post_init__(self) -> None:
        """Check the values that the miner would otherwise complain about only later."""
        wrong = {
            "rank": not 0 <= self.rank < self.world_size,
            "first_step": self.first_step < 0,
            "num_steps": self.num_steps is not None and self.num_steps < 0,
            "prefetch_steps": not 1 <= self.prefetch_steps <= 4096,
            "patience_s": self.patience_s <= 0,
            "idle_s": self.idle_s <= 0,
            "exhausted": self.exhausted not in ("repeat", "wait"),
            "stale": self.stale not in ("serve", "wait"),
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise ConfigError(f"feed: {name}={getattr(self, name)!r} is out of range in {self}")
        self._position = self.first_step

    @property
    def position(self) -> int:
        """The next step that the loop will get: what a checkpoint has to remember."""
        return self._position

    @property
    def is_open(self) -> bool:
        """Whether a thread and a connection are held."""
        return self._prefetcher is not None

    def figures(self) -> FeedFigures:
        """What this feed has given so far, and how its connection does; from any thread."""
        reader = self._prefetcher
        return self._tally.figures(
            stalled_s=self.stalled_s,
            num_reconnects=reader.num_reconnects if reader else 0,
            num_buffered=reader.num_buffered if reader else 0,
        )

    def open(self) -> TripletFeed:
        """Open the run on the miner and begin to read ahead; does nothing on an open feed.

        Raises:
            MinerUnreachableError: If no miner answers within ``patience_s``.
            RunRefusedError: If the run exists with other values.
            BadRequestError: If the miner calls a value malformed; the text names the field.
            AccessDeniedError: If the miner wants a token or another one.
            ConfigError: If a file of ``tls`` or the token cannot be read.
        """
        if self._prefetcher is not None:
            return self
        with self._client(self.patience_s) as client:
            opened = client.open_run(self._run_parameters())
        if opened.planned_steps < self._position:
            logger.warning(
                "run %s: the miner at %s has planned %d steps of it, yet step %d is asked for; "
                "if this trainer resumes, that miner does not have the log it was trained from",
                *(self.run_id, self.address, opened.planned_steps, self._position),
                extra={"run": self.run_id, "step": self._position},
            )
        self._prefetcher = Prefetcher(self._subscription())
        self._finalizer = weakref.finalize(self, self._prefetcher.close)
        return self

    def commit(self, step: int | None = None) -> int | None:
        """Tell the miner that steps ``[0, step)`` are in a durable checkpoint (default: all given).

        Advisory: it lets the miner drop rounds that no restart will ask for. Call it on one rank.

        Returns:
            The highest step committed so far; None if the miner did not answer within 2 s, which
            is logged and mended by the next commit.

        Raises:
            FeedError: If the miner refuses it.
        """
        step = self._position if step is None else step
        patience_s = min(COMMIT_PATIENCE_S, self.patience_s)
        with self._client(patience_s) as client:
            try:
                return client.commit(self.run_id, step)
            except MinerUnreachableError as exc:
                extra = {"run": self.run_id, "step": step}
                text = "run %s: step %d not committed: %s"
                logger.warning(text, self.run_id, step, exc, extra=extra)
                return None

    def report_difficulty(self, identity_ids_I: I32, losses_I: F32) -> int | None:
        """Tell mean losses of identities at :attr:`position`: the next round's quotas follow them.

        Advisory, as :meth:`commit`; ranks may each report their own identities.

        Args:
            identity_ids_I: [I] int32, distinct.
            losses_I: [I] float32, finite, at least 0.

        Returns:
            Of how many identities the miner knows a difficulty by now; None if it did not answer
            within 2 s.

        Raises:
            FeedError: If the miner refuses it.
        """
        patience_s = min(COMMIT_PATIENCE_S, self.patience_s)
        with self._client(patience_s) as client:
            try:
                return client.report_difficulty(
                    self.run_id, self._position, identity_ids_I, losses_I
                )
            except MinerUnreachableError as exc:
                logger.warning("run %s: losses not reported: %s", self.run_id, exc)
                return None

    def close(self) -> None:
        """Give up thread and connection; safe to repeat. Batches read ahead are read again."""
        if self._finalizer is not None:
            self._finalizer()
        if self._prefetcher is not None:
            self._tally.num_reconnects += self._prefetcher.num_reconnects
        self._prefetcher = self._finalizer = None

    def __enter__(self) -> TripletFeed:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[TripletBatch]:
        return self

    def __next__(self) -> TripletBatch:
        """The batch of step :attr:`position`.

        Raises:
            FeedError: If the miner is gone, or refuses; see :mod:`trainer.errors`.
        """
        if self._position == self._stop_step:
            self.close()
            raise StopIteration
        self.open()
        assert self._prefetcher is not None
        begin_s = time.perf_counter()
        try:
            batch = self._prefetcher.take()
        except BaseException:
            self.close()
            raise
        self.stalled_s += time.perf_counter() - begin_s
        if batch is None:
            raise StopIteration
        try:
            self._require_fresh(batch)
        except ProtocolError:
            self.close()
            raise
        self._position = batch.step + 1
        self._tally.add(batch)
        return batch

    def _require_fresh(self, batch: TripletBatch) -> None:
        """The miner plans within the bound; here, where it counts, it is checked again."""
        if batch.staleness_steps != max(0, batch.step - batch.model_step):
            raise ProtocolError(
                f"step {batch.step}: the miner says {batch.staleness_steps} steps of staleness, "
                f"yet the round's weights are of step {batch.model_step}"
            )
        bound = self.max_staleness_steps
        is_mined = batch.strategy != RANDOM  # others count from the end of the warm-up
        is_stale = batch.over_stale or (is_mined and batch.staleness_steps > bound)
        if self.stale == "wait" and bound and is_stale:
            raise ProtocolError(
                f"step {batch.step}: the batch is {batch.staleness_steps} steps stale, the bound "
                f"is {bound} and the run waits rather: miner and trainer are of different versions"
            )

    @property
    def _stop_step(self) -> int | None:
        return None if self.num_steps is None else self.first_step + self.num_steps

    def _client(self, patience_s: float) -> MinerClient:
        return MinerClient(
            self.address, patience_s=patience_s, tls=self.tls, token_file=self.token_file
        )

    def _run_parameters(self) -> RunParameters:
        return RunParameters(
            run_id=self.run_id,
            batch_rows=self.batch_rows,
            seed=self.seed,
            exhausted=self.exhausted,
            stale=self.stale,
            max_staleness_steps=self.max_staleness_steps,
            dataset_fingerprint=self.dataset_fingerprint,
        )

    def _subscription(self) -> Subscription:
        return Subscription(
            address=self.address,
            run_id=self.run_id,
            rank=self.rank,
            world_size=self.world_size,
            first_step=self._position,
            stop_step=self._stop_step,
            with_payload=self.with_payload,
            prefetch_steps=self.prefetch_steps,
            idle_s=self.idle_s,
            patience_s=self.patience_s,
            tls=self.tls,
            token_file=self.token_file,
        )
