"""What a fresh interpreter loads with each package, and who may import whom."""

import subprocess
import sys

import pytest

HEAVY = ("ray", "torch", "faiss", "grpc", "pyarrow", "matplotlib", "sklearn")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import miner", set()),
        ("import miner.core", set()),
        ("import miner.types, miner.errors", set()),
        ("import miner.data", {"pyarrow"}),
        ("import miner.rounds", {"pyarrow"}),
        ("import miner.config", {"pyarrow"}),
        ("from miner import mine", {"pyarrow"}),
        ("import trainer.feed", {"grpc", "pyarrow"}),
    ],
)
def test_a_package_loads_no_heavy_library_but_its_own(statement: str, allowed: set[str]) -> None:
    assert loaded_by(statement) & set(HEAVY) <= allowed


def test_the_feed_loads_neither_ray_nor_faiss_nor_the_miner() -> None:
    assert not loaded_by("import trainer.feed") & {"ray", "faiss", "miner"}


def test_the_command_line_answers_without_loading_an_engine() -> None:
    assert not loaded_by("import miner.cli.main") & {"ray", "torch", "faiss", "grpc", "matplotlib"}


def test_imports_keep_to_the_layers() -> None:
    # In a process of its own: import-linter's logging settings would silence every test after it.
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
