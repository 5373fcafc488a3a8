"""One round from embeddings: check, search, select and, where a folder is given, seal.

Runs in this process, with FAISS and NumPy alone. Shape legend: N = rows, D = dimensions,
A = anchors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.app.history import read_history
from miner.app.offline.embeddings import digest_of
from miner.app.offline.folder import open_log, seal_round, warm_file
from miner.app.offline.inputs import Samples, check_embeddings, check_samples
from miner.app.offline.names import RowNames
from miner.app.offline.search import OfflineSearch
from miner.app.offline.sources import open_source
from miner.app.offline.tables import triplet_table
from miner.app.offline.triplets import flatten
from miner.config import MineConfig, load_config, parse_config
from miner.core import History, Selection, SelectionReport, mine_round
from miner.errors import ConfigError
from miner.rounds import RoundDraft, RoundLog, RoundManifest
from miner.types import Groups

__all__ = ["MinedRound", "mine"]

RANDOM = "random"

Settings = MineConfig | Mapping[str, Any] | str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class MinedRound:
    """A round that was just mined.

    Attributes:
        groups: Its groups.
        report: What selection did, in figures.
        round_id: Its number, from 1.
        manifest: The record of the sealed round; None where nothing was written.
        names: What the user calls rows and identities.
    """

    groups: Groups = field(repr=False)
    report: SelectionReport = field(repr=False)
    round_id: int
    manifest: RoundManifest | None = field(repr=False)
    names: RowNames = field(repr=False)

    def triplets(self) -> pa.Table:
        """Flat triplets: row ids and ids of anchor, positive, negative; s_ap, s_an, rank, tier."""
        return triplet_table(flatten(self.groups), self.names)


@dataclass(slots=True)
class _Job:
    """A round in the making: checked input, settings, and the seconds that phases took."""

    config: MineConfig
    samples: Samples
    embeddings_ND: npt.NDArray[np.float32]
    weights_sha256: str
    search: OfflineSearch
    phases_s: dict[str, float]

    def select(self, history: History, round_id: int) -> Selection:
        started_s = time.monotonic()
        selection = mine_round(
            self.search,
            self.embeddings_ND,
            self.samples.identities,
            self.config.selection,
            seed=self.config.seed,
            round_id=round_id,
            history=history,
        )
        self.phases_s["searching"] = self.search.busy_s
        self.phases_s["selecting"] = time.monotonic() - started_s - self.search.busy_s
        return selection

    def draft(self, selection: Selection, model_step: int) -> RoundDraft:
        return RoundDraft(
            model_step=model_step,
            weights_sha256=self.weights_sha256,
            dataset_fingerprint=self.samples.fingerprint,
            strategy=self.config.selection.strategy,
            config=self.config.selection.model_dump(mode="json"),
            seed=self.config.seed,
            index=dict(self.search.description),
            recall=self.search.recall,
            selection=asdict(selection.report),
            phases_s={phase: round(seconds, 3) for phase, seconds in self.phases_s.items()},
            created_unix_s=time.time(),
        )


def mine(  # noqa: PLR0913 - two inputs; all but those by name
    embeddings: object,
    identities: object,
    *,
    ids: object = None,
    out: str | os.PathLike[str] | None = None,
    config: Settings = None,
    model_step: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> MinedRound:
    """Mine one round over embeddings.

    Guarantee: the groups are a function of the candidates found, the identities, the settings, the
    seed and the round's number (and of the rounds before it in ``out``, for the settings that look
    back). With ``index.kind`` flat, the default, candidates are exact, up to ties within float32
    rounding; with another one their recall is measured, and a round below ``index.min_recall``
    refused. No negative shares its anchor's identity. Without ``out`` nothing is written; with it a
    round is sealed there, whole or not at all, durably: round 1 in a new folder, the next one in a
    folder of rounds over the same samples.

    Rows are compared by cosine: float16 and float64 are converted to float32 and rows scaled to
    length 1, in memory; a float32 ``.npy`` file of such rows is used as it lies on the disk. Where
    the settings do not say ``selection.groups_per_round``, every row whose identity has two samples
    is an anchor once. An anchor with fewer rows of other identities than ``num_candidates`` gets
    those there are, and one with fewer negatives than a group has is underfilled as
    ``selection.underfill`` says.

    Args:
        embeddings: [N, D] array, or ``"FILE.npy"``, or ``"FILE:column"`` of Parquet or Arrow.
        identities: N integers or strings, given likewise: row ``i`` is of identity ``i``.
        ids: N distinct integers or strings that name the samples, given likewise; or None.
        out: Folder of the rounds, made if it is missing.
        config: Settings as a mapping, a YAML file or a :class:`~miner.config.MineConfig`.
        model_step: Step of the weights behind the embeddings, for strategy ``curriculum``.
        on_progress: Called with (anchors searched, anchors in all).

    Raises:
        DatasetError: The input cannot be mined; names file, column and first rows.
        ConfigError: A setting is unknown or out of range.
        SelectionError: No group can be made; says which rule took the candidates.
        SearchError: Recall stayed below the floor; has the figures.
        RoundLogError: The folder cannot be written, or is a service's.

    Cost: O(A N D) time for A anchors if exact; beside the input A times ``num_candidates`` times 12
        bytes, and what selection needs.

    Example:
        >>> rows = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
        >>> mined = mine(rows, ["ann", "ann", "bob", "bob"])
        >>> mined.groups.num_groups, mined.triplets().column_names[:3]
        (4, ['anchor', 'positive', 'negative'])
    """
    started_s = time.monotonic()
    if model_step < 0:
        raise ConfigError(f"model_step is {model_step}, but steps count from 0")
    settings = _resolve(config)
    of_identities = open_source(identities, "identities")
    samples = check_samples(of_identities, None if ids is None else open_source(ids, "ids"))
    root = None if out is None else Path(out)
    log = None if root is None else open_log(root, samples)
    settings = settings.for_samples(samples.identities)
    round_id, history = _continue(log, settings, samples.fingerprint, model_step)
    rows_ND = check_embeddings(open_source(embeddings, "embeddings"), samples, of_identities)
    is_named = root is not None and settings.selection.strategy != RANDOM
    digest = digest_of(rows_ND) if is_named else ""
    search = OfflineSearch(
        rows_ND,
        samples.identities,
        settings.index,
        seed=settings.seed,
        warm=None if root is None else warm_file(root, samples),
        on_progress=on_progress,
    )
    phases_s = {"reading": time.monotonic() - started_s}
    job = _Job(settings, samples, rows_ND, digest, search, phases_s)
    selection = job.select(history, round_id)
    manifest = None
    if root is not None:
        made = selection.groups, job.draft(selection, model_step)
        manifest = seal_round(root, samples, round_id, made, settings.rounds)
        search.keep()
    names = RowNames(samples.identities.num_rows, samples.identity_names, samples.sample_ids)
    return MinedRound(selection.groups, selection.report, round_id, manifest, names)


def _resolve(config: Settings) -> MineConfig:
    if isinstance(config, MineConfig):
        return config
    if isinstance(config, str | os.PathLike):
        return load_config(MineConfig, Path(config))
    return parse_config(MineConfig, config or {})


def _continue(
    log: RoundLog | None, config: MineConfig, fingerprint: str, model_step: int
) -> tuple[int, History]:
    """The number of the next round, and what the earlier ones tell it."""
    if log is None:
        return 1, History(model_step=model_step)
    history = read_history(
        log, config.selection, dataset_fingerprint=fingerprint, model_step=model_step
    )
    return (log.newest() or 0) + 1, history
