"""The archive that a configuration names, opened for the log by the driver and for runs by both."""

from __future__ import annotations

from miner.config import MinerConfig
from miner.rounds import RoundsConfig
from miner.rounds.archive import Archive
from miner.rounds.objects import Objects
from miner.serving.run_archive import PLANNING_S, RunArchive
from miner.serving.runs import RunStore

__all__ = ["open_archive", "open_runs"]


def open_archive(config: RoundsConfig) -> Archive | None:
    """The archive, tried out; None if the configuration names none.

    Raises:
        ConfigError: It cannot be used; names `rounds.archive_uri`.
    """
    if config.archive_uri is None:
        return None
    objects = Objects(config.archive_uri)
    objects.require_put_if_absent()
    return Archive(objects)


def open_runs(config: MinerConfig) -> RunStore:
    """The runs of a service; an archive is asked for nothing before a run is opened or planned.

    Raises:
        DiskError: The state folder cannot be written.
    """
    uri = config.rounds.archive_uri
    archive = None if uri is None else RunArchive(Objects(uri, PLANNING_S))
    return RunStore(config.state_dir, config.serving.stride_steps, archive)
