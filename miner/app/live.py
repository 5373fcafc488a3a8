"""The snapshot behind the newest mined round, opened when it is first asked for.

Shape legend: I = identities.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miner.core.pairs import IdentityPairs
from miner.data import RowStore
from miner.errors import RunConflictError, SnapshotError
from miner.rounds import RoundLog, RoundManifest
from miner.serving.queries import LiveSnapshot
from miner.workers.snapshot import Snapshots

__all__ = ["LiveRound"]


@dataclass(slots=True)
class LiveRound:
    """Follows the log. Safe among threads.

    Attributes:
        log: Where rounds are sealed.
        snapshots: Where their embeddings lie.
        row_store: Of the dataset.
    """

    log: RoundLog
    snapshots: Snapshots
    row_store: RowStore
    _opened: LiveSnapshot | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def snapshot(self) -> LiveSnapshot:
        """What the newest mined round was made from.

        Raises:
            RunConflictError: No round has been mined yet.
            SnapshotError: The snapshot is damaged, or was deleted.

        Cost: after a new round its snapshot is read and verified once, some 1 GB/s.
        """
        with self._lock:
            manifest = self._newest_mined()
            if self._opened is None or self._opened.round_id != manifest.round_id:
                self._opened = self._open(manifest)
            return self._opened

    def _newest_mined(self) -> RoundManifest:
        for round_id in reversed(self.log.sealed_ids()):
            manifest = self.log.manifest(round_id)
            if manifest.weights_sha256:
                return manifest
        raise RunConflictError(
            "no round has been mined yet, so there are no embeddings to search: announce weights "
            "beyond the warm-up, and ask when their round is sealed"
        )

    def _open(self, manifest: RoundManifest) -> LiveSnapshot:
        key = self.snapshots.find(manifest.weights_sha256, manifest.dataset_fingerprint)
        if key is None:
            raise SnapshotError(
                f"the snapshot of round {manifest.round_id} is not kept any more: raise "
                "workers.keep_snapshots"
            )
        identities = self.row_store.catalog.identities
        report: Any = manifest.selection.get("quarantine") or {}
        suspects = [pair["identities"] for pair in report.get("pairs", [])]
        if report.get("policy") != "exclude":
            suspects = []
        pairs_Q2 = np.array(suspects, np.int64).reshape(-1, 2)
        pairs = IdentityPairs.of(pairs_Q2[:, 0], pairs_Q2[:, 1], identities.num_identities)
        return LiveSnapshot(
            round_id=manifest.round_id,
            model_step=manifest.model_step,
            embeddings_ND=self.snapshots.open(key),
            identities=identities,
            kin_I=pairs.kin(),
        )
