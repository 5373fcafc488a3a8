"""Of all who put a key one wins; refusals come soon, name the object, and tell no secret."""

import builtins
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from miner.errors import ConfigError, DiskError
from miner.rounds.objects import Objects
from tests.miner.rounds.loopback_s3 import UnsteadyS3, objects_of


@pytest.fixture(params=["s3", "file"])
def objects(request: pytest.FixtureRequest, s3: UnsteadyS3, folder: str, tmp_path: Path) -> Objects:
    return objects_of(s3, folder) if request.param == "s3" else Objects(f"file://{tmp_path}/a")


def test_of_all_who_put_a_key_at_once_one_wins_and_all_are_given_its_content(
    objects: Objects,
) -> None:
    contents = [b"content %d" % i for i in range(24)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda content: objects.put_new("log/1", content), contents))
    assert len(set(found)) == 1
    assert found[0] in contents
    assert objects.get("log/1") == found[0]
    assert objects.put_new("log/1", found[0]) == found[0], "who repeats it is told the same"


def test_objects_are_listed_in_order_read_and_removed(objects: Objects) -> None:
    names = [f"run/{i:03d}" for i in range(40)]
    for name in reversed(names):
        objects.put(name, name.encode())
    objects.put("run/000", b"replaced")
    objects.put("running", b"not in the folder")
    assert objects.keys("run") == names
    assert objects.keys("run", after="run/037") == names[38:]
    assert objects.keys("nothing") == []
    assert list(objects.get_all([*names[:3], "run/absent"])) == [
        *(b"replaced", b"run/001", b"run/002", None),
    ]
    objects.remove([*names[1:], "run/absent"])
    assert objects.keys("run") == names[:1]


def test_a_store_that_refuses_to_replace_is_taken_and_no_trace_is_left(objects: Objects) -> None:
    objects.require_put_if_absent()
    assert objects.keys("probe") == []


def test_a_store_that_ignores_the_condition_is_refused_by_name(s3: UnsteadyS3, folder: str) -> None:
    with s3.being("deaf"), pytest.raises(ConfigError, match=r"rounds\.archive_uri: s3://.*If-None"):
        objects_of(s3, folder).require_put_if_absent()


@pytest.mark.parametrize(("mode", "said"), [("away", "PUT"), ("denying", "403.*AccessDenied")])
def test_a_store_that_cannot_be_had_at_the_start_is_refused_with_the_reason(
    s3: UnsteadyS3, folder: str, mode: str, said: str
) -> None:
    with s3.being(mode), pytest.raises(ConfigError, match=said) as refused:
        objects_of(s3, folder).require_put_if_absent()
    assert "rounds.archive_uri" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)


@pytest.mark.parametrize("mode", ["away", "denying", "hanging"])
def test_every_request_ends_in_time_with_an_error_that_names_the_object(
    s3: UnsteadyS3, folder: str, mode: str
) -> None:
    objects = objects_of(s3, folder, timeout_s=0.3)
    with s3.being(mode):
        for request in (
            lambda: objects.put("a/b", b"c"),
            lambda: objects.put_new("a/b", b"c"),
            lambda: objects.get("a/b"),
            lambda: objects.keys("a/b"),
            lambda: objects.remove(["a/b"]),
        ):
            begin_s = time.monotonic()
            with pytest.raises(DiskError, match=f"{folder}/a/b cannot be"):
                request()
            assert time.monotonic() - begin_s < 3.0
    objects.put("a/b", b"c")


def test_a_put_whose_answer_is_lost_has_won_for_whoever_repeats_it(
    s3: UnsteadyS3, folder: str
) -> None:
    objects = objects_of(s3, folder)
    s3.lose_answer_to = "log/1"
    try:
        objects.put_new("log/1", b"mine")
    except DiskError:
        assert objects.put_new("log/1", b"mine") == b"mine"
    assert objects.put_new("log/1", b"other") == b"mine"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://somebody:secret@bucket/a", "credentials, endpoint and region come from"),
        ("s3://bucket/a?secret_key=secret", "credentials, endpoint and region come from"),
        ("bucket/a", "is no store"),
        ("http://host/a", "is no store"),
        ("s3://", "is no store"),
        ("file:///proc/nothing/a", "cannot be used"),
    ],
)
def test_uris_that_cannot_be_meant_are_refused_by_name(uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"rounds\.archive_uri: .*{said}") as refused:
        Objects(uri)
    assert "secret@" not in str(refused.value)
    assert "=secret" not in str(refused.value)


def test_without_the_client_the_setting_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("obstore"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"rounds\.archive_uri.*pip install 'coalface\[archive\]"):
        Objects("s3://bucket/a")
