"""P5 and P6 over the loss of a disk: a round is in the archive whole or not at all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import miner
from miner.rounds.archive import Archive
from miner.rounds.restore import restore_log
from tests.miner.rounds.archived import content_of, open_archived, seal_next
from tests.miner.rounds.loopback_s3 import UnsteadyS3, objects_of
from tests.miner.rounds.round_samples import bytes_of, make_groups

SIDES = ("begin", "put")
PASSAGES = {
    "archive.put.begin": (1, 4, 7, 12),
    "archive.entry.begin": (1, 2, 5, 6),
    "archive.entry.put": (1, 2, 5, 6),
    "archive.remove.begin": (1, 2),
    "writer.open.fenced": (1,),
    "writer.chunk.written": (2, 8),
    "writer.manifest.begin": (1, 3),
    "writer.manifest.written": (1, 5),
    "durable.publish.finished": (1, 3),
    "durable.publish.renamed": (1, 3),
    "writer.seal.published": (1, 5),
    "writer.retain.listed": (1,),
    "writer.retain.renamed": (2,),
}
SETTINGS = [f"{number}*{name}=kill" for name, numbers in PASSAGES.items() for number in numbers]
AROUND_THE_SEAL = ["7*archive.put.begin=kill", *(f"2*archive.entry.{at}=kill" for at in SIDES)]


@pytest.mark.parametrize(
    "settings", [AROUND_THE_SEAL, pytest.param(SETTINGS, marks=pytest.mark.long)]
)
def test_a_writer_killed_anywhere_leaves_an_archive_that_restores_what_was_told(
    s3: UnsteadyS3, folder: str, tmp_path: Path, settings: list[str]
) -> None:
    project = Path(miner.__file__).parents[1]
    command = [
        sys.executable,
        "-m",
        "tests.miner.rounds.archived_child",
        s3.place(folder),
        tmp_path,
    ]
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *settings], check=True, cwd=project, env=environment)
    newest = []
    for number, setting in enumerate(settings):
        assert (tmp_path / f"ends-{number}").read_text() == str(int(signal.SIGKILL)), setting
        archive = Archive(objects_of(s3, f"{folder}/{number}", 10.0))
        log = restore_log(tmp_path / f"restored-{number}", archive)
        assert log.verify() == [], setting
        sealed = log.sealed_ids()
        for round_id in sealed:
            assert bytes_of(log.read(round_id)) == bytes_of(make_groups(10, seed=round_id))
        told = [json.loads(line) for line in (tmp_path / f"says-{number}").read_text().splitlines()]
        for round_id, digest in told:
            if round_id in log.expired_ids():
                assert round_id <= 2
            else:
                assert log.manifest(round_id).sha256 == digest, setting
        newest.append(max(sealed, default=0) - len(told))

        killed = restore_log(tmp_path / str(number), archive)
        assert content_of(killed) == content_of(log), setting
        writer = open_archived(tmp_path / f"restored-{number}", archive)
        seal_next(writer)
        named = {place.folder for place in archive.newest().rounds.values()}
        assert {key.split("/")[1] for key in archive.objects.keys("rounds")} == named, setting
    assert {0, 1} == set(newest), "kills on both sides of the seal"
