"""Tells an autoscaling cluster what a service needs, before it is needed.

Actors that wait make a cluster grow too, but those of the search are asked for only when a snapshot
is whole, and machines take minutes to come. Without an autoscaler the request is a note nobody
reads. A cluster keeps one such note: the newest one counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from miner.workers.config import WorkersConfig

__all__ = ["bundles_of", "requested"]

log = logging.getLogger(__name__)


def bundles_of(workers: WorkersConfig) -> list[dict[str, float]]:
    """What each actor asks for, if all of them run at once; memory of shards is not known yet.

    Example:
        >>> bundles_of(WorkersConfig(gpus_per_worker=1, search_cpus=4))
        [{'CPU': 1.0, 'GPU': 1.0}, {'CPU': 4.0}]
    """
    embed = {"CPU": workers.cpus_per_worker, "GPU": workers.gpus_per_worker}
    search = {"CPU": workers.search_cpus, "GPU": workers.search_gpus}
    bundles = [embed] * (workers.num_embed_workers or 1) + [search] * workers.search_shards
    return [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]


@contextmanager
def requested(workers: WorkersConfig) -> Iterator[None]:
    """Ask the autoscaler for all of it, until the block ends.

    A process that is killed leaves its request to the cluster, until the next service replaces it.
    """
    if not workers.request_early:
        yield
        return
    _request(bundles_of(workers))
    try:
        yield
    finally:
        _request([])


def _request(bundles: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    try:
        request_resources(bundles=bundles)
    except Exception:  # of several kinds, from code that Ray calls experimental
        log.warning("the autoscaler cannot be told what is needed: %s", bundles, exc_info=True)
