"""What an archive holds comes back to the byte, on any disk; of two writers one seals."""

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner import failpoints
from miner.errors import DamagedRoundError, DiskError, RoundLogError, StaleWriterError
from miner.rounds import RoundLog, RoundWriter
from miner.rounds.archive import Archive
from miner.rounds.archive_writer import ArchiveWriter
from miner.rounds.check import check_log
from miner.rounds.objects import Objects
from miner.rounds.restore import restore_log
from tests.miner.rounds.archived import CONFIG, content_of, files_of, open_archived, seal_next
from tests.miner.rounds.loopback_s3 import UnsteadyS3, objects_of
from tests.miner.rounds.round_samples import make_draft, make_groups, make_log


@pytest.fixture
def archive(s3: UnsteadyS3, folder: str) -> Archive:
    return Archive(objects_of(s3, folder, timeout_s=5.0))


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_a_lost_log_comes_back_with_every_byte_and_goes_on(
    archive: Archive, tmp_path: Path
) -> None:
    writer = open_archived(tmp_path / "lost", archive)
    for _ in range(5):
        seal_next(writer)
    assert writer.retain(2, {2}) == [1, 3]
    lost = content_of(writer.log)
    files = files_of(tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost")

    restored = restore_log(tmp_path / "new", archive)
    assert content_of(restored) == lost
    assert files_of(tmp_path / "new") == files
    assert restored.verify() == []
    after = open_archived(tmp_path / "new", archive)
    assert list(check_log(after.log)) == []
    assert (after.generation, seal_next(after)) == (2, 6)
    assert restored.manifest(6).previous_sha256 == restored.manifest(5).sha256
    with pytest.raises(RoundLogError, match="round 3 has expired: rounds 2, 4-6 are kept"):
        restored.read(3)


@settings(max_examples=25, deadline=None)
@given(
    acts=st.lists(st.sampled_from(["seal", "seal", "retain", "open", "move", "old disk"])),
    seed=st.integers(0, 2**32),
)
def test_whatever_has_happened_to_a_log_its_archive_restores_it(acts: list[str], seed: int) -> None:
    rng = random.Random(seed)
    with TemporaryDirectory() as place:
        archive = Archive(Objects(f"file://{place}/archive"))
        roots = [Path(place) / "disk-0"]
        writer = open_archived(roots[0], archive)
        for number, act in enumerate(acts):
            if act == "seal":
                seal_next(writer)
            elif act == "retain":
                kept = rng.sample(writer.log.sealed_ids(), min(1, len(writer.log.sealed_ids())))
                writer.retain(rng.randint(1, 3), set(kept))
            else:
                if act == "move":
                    roots.append(Path(place) / f"disk-{number + 1}")
                root = rng.choice(roots) if act == "old disk" else roots[-1]
                before = content_of(writer.log)
                writer = open_archived(root, archive)
                assert content_of(writer.log) == before
        restored = restore_log(Path(place) / "restored", archive)
        assert content_of(restored) == content_of(writer.log)
        assert restored.verify() == []


def test_a_writer_on_another_disk_fences_the_first(archive: Archive, tmp_path: Path) -> None:
    first = open_archived(tmp_path / "a", archive)
    seal_next(first)
    second = open_archived(tmp_path / "b", archive)
    before = files_of(tmp_path / "a")
    with pytest.raises(StaleWriterError, match=r"generation 1 .* generation 2 has taken over"):
        seal_next(first)
    seal_next(second)
    seal_next(second)
    with pytest.raises(StaleWriterError):
        seal_next(first)
    assert files_of(tmp_path / "a") == before
    assert content_of(restore_log(tmp_path / "a", archive)) == content_of(second.log)
    first = RoundWriter(RoundLog(tmp_path / "a"), 1, CONFIG, first._archive)
    with pytest.raises(StaleWriterError):
        first.retain(1, set())
    assert archive.newest() is not None
    assert second.log.sealed_ids() == [1, 2, 3]


def test_a_writer_that_is_overtaken_at_the_last_moment_does_not_seal(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_archived(tmp_path / "a", archive)
    put_new = Objects.put_new

    def overtaken(self: Objects, key: str, content: bytes) -> bytes:
        monkeypatch.undo()
        seal_next(open_archived(tmp_path / "b", archive), seed=50)
        return put_new(self, key, content)

    monkeypatch.setattr(Objects, "put_new", overtaken)
    with pytest.raises(StaleWriterError, match="generation 2 has taken over"):
        seal_next(first)
    assert first.log.sealed_ids() == []
    assert RoundLog(tmp_path / "b").verify() == []
    newest = open_archived(tmp_path / "c", archive)
    assert content_of(newest.log) == content_of(RoundLog(tmp_path / "b"))
    assert len({key.split("/")[1] for key in archive.objects.keys("rounds")}) == 1


def test_of_writers_that_take_over_from_one_another_each_round_has_one(
    archive: Archive, tmp_path: Path
) -> None:
    sealed: list[tuple[int, str]] = []
    refusals: list[str] = []
    start = threading.Barrier(3)

    def write(name: str) -> None:
        start.wait()
        for life in range(2):
            try:
                writer = open_archived(tmp_path / name, archive)
                for _ in range(2):
                    round_id = seal_next(writer, seed=hash((name, life)) % 1000)
                    sealed.append((round_id, writer.log.manifest(round_id).sha256))
            except RoundLogError as exc:
                refusals.append(str(exc))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sealed
    assert all("taken over" in text for text in refusals), "fenced, or never the first"
    log = restore_log(tmp_path / "restored", archive)
    assert log.verify() == []
    assert len({round_id for round_id, _ in sealed}) == len(sealed)
    assert all(log.manifest(round_id).sha256 == digest for round_id, digest in sealed)


def test_a_round_whose_entry_got_no_answer_is_adopted_before_the_next(
    archive: Archive, tmp_path: Path
) -> None:
    writer = open_archived(tmp_path / "a", archive)
    failpoints.arm("1*archive.entry.put=error(EIO)")
    with pytest.raises(RoundLogError, match="cannot be put"):
        seal_next(writer, seed=1)
    assert writer.log.sealed_ids() == []
    seal_next(writer, seed=2)
    assert [writer.log.manifest(i).seed for i in writer.log.sealed_ids()] == [1, 2]
    assert content_of(restore_log(tmp_path / "b", archive)) == content_of(writer.log)


def test_an_entry_that_lands_late_counts_and_damages_nothing(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_archived(tmp_path / "a", archive)
    late: list[tuple[str, bytes]] = []

    def never_answers(self: Objects, key: str, content: bytes) -> bytes:
        late.append((key, content))
        raise DiskError("timed out")

    monkeypatch.setattr(Objects, "put_new", never_answers)
    with pytest.raises(DiskError):
        seal_next(writer, seed=1)
    monkeypatch.undo()
    put_new = Objects.put_new

    def comes_too_late(self: Objects, key: str, content: bytes) -> bytes:
        self.put(*late[0])
        return put_new(self, key, content)

    monkeypatch.setattr(Objects, "put_new", comes_too_late)
    with pytest.raises(RoundLogError, match="round 1 is in the archive already"):
        seal_next(writer, seed=2)
    monkeypatch.undo()
    assert seal_next(writer, seed=3) == 2
    assert [writer.log.manifest(i).seed for i in (1, 2)] == [1, 3]
    assert content_of(restore_log(tmp_path / "b", archive)) == content_of(writer.log)


@pytest.mark.parametrize("mode", ["away", "denying", "hanging"])
def test_a_store_that_refuses_fails_the_round_and_leaves_the_log_as_it_was(
    s3: UnsteadyS3, folder: str, tmp_path: Path, mode: str
) -> None:
    archive = Archive(objects_of(s3, folder, timeout_s=0.4))
    writer = open_archived(tmp_path / "a", archive)
    for _ in range(3):
        seal_next(writer)
    before, files = content_of(writer.log), files_of(tmp_path / "a")
    with s3.being(mode):
        with pytest.raises(RoundLogError, match="cannot be put"):
            seal_next(writer)
        with pytest.raises(RoundLogError, match="cannot be put"):
            writer.retain(1, set())
        with pytest.raises(RoundLogError, match="cannot be"):
            open_archived(tmp_path / "b", archive)
    assert content_of(writer.log) == before
    assert files_of(tmp_path / "a") == files
    assert seal_next(writer) == 4
    assert writer.retain(1, set()) == [1, 2, 3]
    assert content_of(restore_log(tmp_path / "b", archive)) == content_of(writer.log)


def test_a_log_that_had_no_archive_is_taken_into_one(archive: Archive, tmp_path: Path) -> None:
    log, plain = make_log(tmp_path / "a", 5)
    plain.retain(3, set())
    writer = open_archived(tmp_path / "a", archive)
    assert writer.generation == 2
    assert content_of(restore_log(tmp_path / "b", archive)) == content_of(log)
    # The archive was switched off for a while.
    plain = RoundWriter.open(log)
    for seed in (6, 7, 8):
        plain.seal(make_groups(10, seed=seed), make_draft())
    plain.retain(2, {3})
    open_archived(tmp_path / "a", archive)
    assert log.sealed_ids() == [3, 7, 8]
    assert content_of(restore_log(tmp_path / "c", archive)) == content_of(log)
    assert content_of(restore_log(tmp_path / "b", archive)) == content_of(log)


def test_folders_that_do_not_lead_to_the_archive_are_refused(
    archive: Archive, tmp_path: Path
) -> None:
    seal_next(open_archived(tmp_path / "a", archive))
    make_log(tmp_path / "other", 1)
    with pytest.raises(RoundLogError, match=r"rounds\.archive_uri: .* holds log"):
        restore_log(tmp_path / "other", archive)
    shutil.copytree(tmp_path / "a", tmp_path / "fork")
    plain = RoundWriter.open(RoundLog(tmp_path / "fork"))
    plain.seal(make_groups(10, seed=77), make_draft())
    seal_next(open_archived(tmp_path / "a", archive))
    with pytest.raises(RoundLogError, match=r"different ways .both hold a round 2"):
        restore_log(tmp_path / "fork", archive)
    assert RoundLog(tmp_path / "fork").sealed_ids() == [1, 2]


def test_damage_in_the_archive_is_named_and_nothing_half_is_restored(tmp_path: Path) -> None:
    archive = Archive(Objects(f"file://{tmp_path}/archive"))
    writer = open_archived(tmp_path / "a", archive)
    for _ in range(2):
        seal_next(writer)
    objects = archive.objects
    for key in [key for part in ("log", "rounds") for key in objects.keys(part)]:
        content = objects.get(key)
        assert content is not None
        if key.startswith("log/") and key != objects.keys("log")[-1]:
            continue  # of entries the newest is read
        for damaged in (bytes([content[0] ^ 1]) + content[1:], content[:-1], b""):
            objects.put(key, damaged)
            with pytest.raises(DamagedRoundError, match=key):
                restore_log(tmp_path / "b", archive)
            shown = tmp_path / "b" / "rounds"
            assert [p.name for p in shown.glob("*") if not p.suffix] in ([], ["00000001"])
        objects.put(key, content)
    assert content_of(restore_log(tmp_path / "b", archive)) == content_of(writer.log)


def test_writers_that_take_over_at_once_write_to_folders_of_their_own(
    archive: Archive, tmp_path: Path
) -> None:
    entry = archive.newest("a log")
    folders = {ArchiveWriter(archive, 1, entry).new_folder(1) for _ in range(2)}
    assert len(folders) == 2, "the loser may have put rounds before it knew"


def test_a_fenced_writer_removes_nothing_that_a_newer_one_is_building(
    archive: Archive, tmp_path: Path
) -> None:
    old = open_archived(tmp_path / "a", archive)
    seal_next(old)
    new = open_archived(tmp_path / "b", archive)
    assert old._archive is not None
    assert new._archive is not None
    building = new._archive.new_folder(2)
    new._archive.put(building, "chunk-00000.arrow", b"some groups")
    old._archive.remove_leftovers()
    assert archive.objects.keys(f"rounds/{building}") != []
    newest = open_archived(tmp_path / "c", archive)
    assert archive.objects.keys(f"rounds/{building}") == []
    assert content_of(newest.log) == content_of(new.log)


def test_a_damaged_round_of_the_folder_comes_back_when_it_is_moved_away(
    archive: Archive, tmp_path: Path
) -> None:
    writer = open_archived(tmp_path / "a", archive)
    for _ in range(3):
        seal_next(writer)
    before = content_of(writer.log)
    shutil.rmtree(writer.log.folder(2))
    assert content_of(open_archived(tmp_path / "a", archive).log) == before


def test_a_round_that_does_not_follow_the_one_before_is_damage(
    archive: Archive, tmp_path: Path
) -> None:
    writer = open_archived(tmp_path / "a", archive)
    seal_next(writer)
    seal_next(writer)
    other = Archive(Objects(f"file://{tmp_path}/other"))
    other.newest(writer.log.log_id)
    stranger = open_archived(tmp_path / "b", other)
    seal_next(stranger, seed=50)
    seal_next(stranger, seed=51)
    assert writer._archive is not None
    assert stranger._archive is not None
    place = stranger._archive.entry.rounds[2]
    folder = f"rounds/{place.folder}"
    for key in other.objects.keys(folder):
        archive.objects.put(
            key.replace(place.folder, "00000002.g9-1"), other.objects.get(key) or b""
        )
    swapped = place._replace(folder="00000002.g9-1")
    writer._archive.append(
        lambda entry: entry.model_copy(update={"rounds": {**entry.rounds, 2: swapped}})
    )
    with pytest.raises(DamagedRoundError, match=r"00000002\.g9-1 .*does not follow"):
        restore_log(tmp_path / "c", archive)


def test_files_that_no_reader_needs_are_removed_and_no_others(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_archived(tmp_path / "a", archive)
    for _ in range(3):
        seal_next(writer)
    failpoints.arm("archive.entry.begin=error(EIO)")
    with pytest.raises(RoundLogError):
        seal_next(writer)
    failpoints.arm("")

    def folders() -> set[str]:
        return {key.split("/")[1] for key in archive.objects.keys("rounds")}

    assert len(folders()) == 4
    seal_next(writer)
    assert len(folders()) == 5
    monkeypatch.setattr(ArchiveWriter, "remove_leftovers", lambda _: None)
    writer.retain(2, set())
    monkeypatch.undo()
    assert len(folders()) == 5
    writer = open_archived(tmp_path / "b", archive)
    assert len(folders()) == 2
    seal_next(writer)
    writer.retain(1, set())
    assert len(folders()) == 1
    assert content_of(restore_log(tmp_path / "c", archive)) == content_of(writer.log)
