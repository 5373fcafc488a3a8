"""``coalface-miner token``: the token is shown once, and its file knows it."""

import subprocess
import sys
from pathlib import Path

from miner.serving.tokens import read_tokens


def miner(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "miner", "token", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_token_is_shown_alone_and_its_file_knows_its_role(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    done = miner("trainer-1", "--role", "write", "--file", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    (token,) = done.stdout.split()
    found = read_tokens(path).by_token(token)
    assert found is not None
    assert (found.name, found.role) == ("trainer-1", "write")
    again = miner("trainer-1", "--file", str(path))
    assert again.returncode == 2
    assert "the same name" in again.stderr
    assert not again.stdout


def test_an_unknown_role_is_a_usage_error(tmp_path: Path) -> None:
    done = miner("a", "--role", "root", "--file", str(tmp_path / "t"))
    assert done.returncode == 2
    assert not (tmp_path / "t").exists()
