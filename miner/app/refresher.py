r"""One refresh: weights in, a sealed round out. Runs in the driver; Ray does the heavy parts.

idle -> embedding -> searching -> selecting -> sealing -> idle
     \--------------(random round)-----------------^
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.app.accepted import AcceptedWeights
from miner.app.cluster import told_of
from miner.app.history import read_history
from miner.config import MinerConfig
from miner.core import Selection, mine_round, random_groups
from miner.data import Catalog
from miner.errors import NotReadyError
from miner.rounds import RoundDraft, RoundManifest, RoundWriter
from miner.serving.backend import Phase, RefreshState
from miner.serving.difficulty import read_difficulties
from miner.types import Candidates
from miner.workers.embed import EmbedPool
from miner.workers.remote import Watch
from miner.workers.search import SearchRequest, search_snapshot
from miner.workers.snapshot import SnapshotKey, Snapshots

__all__ = ["Refresher"]

logger = logging.getLogger(__name__)

SHOW_EVERY_S = 0.25
RANDOM = "random"


@dataclass(slots=True)
class Mined:
    """What one refresh found, before it is sealed."""

    selection: Selection
    strategy: str
    is_warm_up: bool = False
    index: dict[str, Any] = field(default_factory=dict)
    recall: float | None = None


@dataclass(slots=True)
class Refresher:
    """Makes rounds, one at a time.

    Attributes:
        config: The resolved configuration.
        catalog: The dataset's catalog.
        writer: The only writer of the round log.
        pool: The embedding workers.
        snapshots: Where their chunks lie.
        show: Takes every change of the refresh's state.
        is_stopping: Whether the service is about to end; a refresh under way is then given up.
    """

    config: MinerConfig
    catalog: Catalog
    writer: RoundWriter
    pool: EmbedPool
    snapshots: Snapshots
    show: Callable[[RefreshState], None]
    is_stopping: Callable[[], bool] = lambda: False
    _state: RefreshState = field(default_factory=RefreshState)
    _phases_s: dict[str, float] = field(default_factory=dict)
    _entered_s: float = 0.0
    _shown_s: float = 0.0

    @property
    def state(self) -> RefreshState:
        """How the mining stands."""
        return self._state

    def refresh(self, weights: AcceptedWeights | None) -> RoundManifest:
        """Mine with ``weights`` and seal the round; a random one before the warm-up is over.

        Raises:
            CoalfaceError: No round was sealed; the log is as it was.
        """
        started_s = time.monotonic()
        self._phases_s = {}
        self._state = replace(self._state, model_step=weights.step if weights else 0)
        try:
            manifest = self._seal(self._mine(weights), weights)
        except BaseException as exc:
            num_failed = self._state.num_failed + 1
            self._finish(started_s, num_failed=num_failed, last_error=told_of(exc))
            raise
        self._finish(started_s, num_sealed=self._state.num_sealed + 1)
        logger.info(
            "sealed round %d: %s, %d groups, %d triplets, weights of step %d, %.1f s (%s)",
            *(manifest.round_id, manifest.strategy, manifest.num_groups, manifest.num_triplets),
            *(manifest.model_step, time.monotonic() - started_s),
            ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self._phases_s.items()),
            extra={
                "round": manifest.round_id,
                "model_step": manifest.model_step,
                "strategy": manifest.strategy,
                "num_groups": manifest.num_groups,
                "num_triplets": manifest.num_triplets,
                "phases_s": dict(self._phases_s),
            },
        )
        return manifest

    def _mine(self, weights: AcceptedWeights | None) -> Mined:
        config, identities = self.config, self.catalog.identities
        seed, round_id = config.seed, self.writer.next_round_id
        is_warm = weights is not None and weights.step >= config.refresh.warmup_steps
        if weights is None or not is_warm or config.selection.strategy == RANDOM:
            self._enter("selecting", len(identities.sizes_I), "identities")
            is_warm_up = config.selection.strategy != RANDOM
            groups = random_groups(identities, config.selection, seed=seed, round_id=round_id)
            return Mined(groups, RANDOM, is_warm_up)
        self._enter("embedding", identities.num_rows, "rows")
        key = self.pool.key(weights.sha256)
        self.pool.embed(key, weights.uri, self._progress)
        history = read_history(
            self.writer.log,
            config.selection,
            dataset_fingerprint=self.catalog.fingerprint,
            model_step=weights.step,
        )
        losses_I = read_difficulties(config.state_dir, identities.num_identities)
        history = replace(history, losses_I=losses_I)
        search = _Search(self, key)
        selection = mine_round(
            search,
            self.snapshots.open(key),
            identities,
            config.selection,
            seed=seed,
            round_id=round_id,
            history=history,
        )
        return Mined(selection, config.selection.strategy, index=search.index, recall=search.recall)

    def _seal(self, mined: Mined, weights: AcceptedWeights | None) -> RoundManifest:
        self._enter("sealing", mined.selection.groups.num_groups, "groups")
        draft = RoundDraft(
            model_step=weights.step if weights else 0,
            weights_sha256=weights.sha256 if weights and mined.strategy != RANDOM else "",
            warmup_steps=self.config.refresh.warmup_steps if mined.is_warm_up else None,
            dataset_fingerprint=self.catalog.fingerprint,
            strategy=mined.strategy,
            config=self.config.selection.model_dump(mode="json"),
            seed=self.config.seed,
            index=mined.index,
            recall=mined.recall,
            selection=asdict(mined.selection.report),
            phases_s=self._phases_s,
            created_unix_s=time.time(),
        )
        return self.writer.seal(mined.selection.groups, draft)

    def _enter(self, phase: Phase, total: int, unit: str) -> None:
        """Show the phase; the one before it has ended, and its seconds are noted."""
        self._go_on()
        self._leave()
        self._state = replace(self._state, phase=phase, done=0, total=total, unit=unit)
        self.show(self._state)

    def _leave(self) -> None:
        now_s, phase = time.monotonic(), self._state.phase
        if phase != "idle":
            passed_s = self._phases_s.get(phase, 0.0) + now_s - self._entered_s
            self._phases_s[phase] = round(passed_s, 3)
        self._entered_s = now_s

    def _progress(self, done: int, total: int) -> None:
        self._go_on()
        now_s = time.monotonic()
        if done == total or now_s - self._shown_s >= SHOW_EVERY_S:
            self._shown_s = now_s
            self._state = replace(self._state, done=done, total=total)
            self.show(self._state)

    def _go_on(self) -> None:
        if self.is_stopping():
            raise NotReadyError("the service is stopping; what is embedded is kept for next time")

    def _finish(self, started_s: float, **changes: Any) -> None:
        self._leave()
        busy_s = self._state.busy_s + time.monotonic() - started_s
        self._state = replace(
            self._state, phase="idle", done=0, total=0, unit="", busy_s=busy_s, **changes
        )
        self.show(self._state)


@dataclass(slots=True)
class _Search:
    """Searches a snapshot on the cluster, as a phase of the refresh; selecting comes after it."""

    refresher: Refresher
    key: SnapshotKey
    index: dict[str, Any] = field(default_factory=dict)
    recall: float | None = None

    def __call__(self, anchor_ids_A: npt.NDArray[np.int64], num_candidates: int) -> Candidates:
        refresher, config = self.refresher, self.refresher.config
        refresher._enter("searching", len(anchor_ids_A), "anchors")
        snapshots, identities = refresher.snapshots, refresher.catalog.identities
        request = SearchRequest(
            snapshots,
            self.key,
            identities,
            anchor_ids_A,
            num_candidates,
            config.seed,
            warm_path=snapshots.scratch / "search.safetensors",
        )
        watch = Watch(refresher._progress, refresher._go_on, refresher.pool.make_room)
        found = search_snapshot(request, config.index, config.workers, watch)
        self.index = dict(found.index)
        measured = [recall for recall in (self.recall, found.recall) if recall is not None]
        self.recall = min(measured, default=None)
        refresher._enter("selecting", len(anchor_ids_A), "anchors")
        return found.candidates
