"""What is kept of compiled functions may be damaged, stale, or refused by the disk."""

import importlib.util
import sys
from pathlib import Path

import pytest

from miner import compiled as compiled_module

SOURCE = """
from miner.compiled import compiled

@compiled
def double(number):
    return 2 * number
"""


@pytest.fixture
def load(tmp_path):
    """A module with a compiled function, loaded anew each time, as another process would."""
    path = tmp_path / "doubling.py"
    path.write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location("doubling", path)
        sys.modules["doubling"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.double

    yield load
    sys.modules.pop("doubling", None)


def kept_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nb[ic]"))


def was_loaded(function) -> bool:
    return bool(function.stats.cache_hits)


def test_a_later_process_takes_what_an_earlier_one_has_compiled(load, tmp_path):
    assert load()(3) == 6
    assert len(kept_in(tmp_path)) == 2
    again = load()
    assert again(3) == 6
    assert was_loaded(again)


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"\x00damaged"])
def test_damaged_files_cost_time_only_and_are_mended(load, tmp_path, suffix, content):
    load()(3)
    for path in kept_in(tmp_path):
        if path.suffix == suffix:
            path.write_bytes(content)
    damaged = load()
    assert damaged(3) == 6
    assert not was_loaded(damaged)
    mended = load()
    assert mended(3) == 6
    assert was_loaded(mended)


def test_a_disk_that_refuses_costs_time_only(load, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_index", refuse)
    assert load()(3) == 6


def test_code_of_functions_called_elsewhere_is_not_taken_for_the_same(load, monkeypatch):
    load()(3)
    monkeypatch.setattr(compiled_module, "_digest_of_sources", lambda: "another")
    changed = load()
    assert changed(3) == 6
    assert not was_loaded(changed)
