"""Scripts and Dockerfiles: linted, and told wrong usage; no file holds a secret or a moving tag."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.shipped import DEPLOY, REPOSITORY
from tests.trainer.feed.served_miner import ServerThread, free_port, make_folder

BIN = Path(sys.executable).parent
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
DOCKERFILES = sorted(DEPLOY.rglob("*.Dockerfile"))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_known_mistakes(script: Path) -> None:
    for command in (
        ["bash", "-n"],
        [BIN / "shellcheck", "--enable=all", "--exclude=SC2250,SC2312"],
    ):
        done = run(*command, script)
        assert done.returncode == 0, done.stdout + done.stderr
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_have_no_known_mistakes(dockerfile: Path) -> None:
    done = run(BIN / "hadolint", "--no-color", dockerfile)
    assert done.returncode == 0, done.stdout + done.stderr
    text = dockerfile.read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "10001:10001"
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert re.search(r":\d+\.\d+\.\d+-\w+", image), f"{image} has no whole version"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_built_from_files_that_are_there_and_let_through(dockerfile: Path) -> None:
    ignored = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text().splitlines()
    assert "*" in ignored, "nothing by default"
    copied = re.findall(
        r"^COPY (?!--from)(?:--\S+ )?(.*) \S+$", dockerfile.read_text(), re.MULTILINE
    )
    for source in " ".join(copied).split():
        assert (REPOSITORY / source).exists(), source
        assert f"!{source}" in ignored, source


def test_versions_of_the_images_are_that_of_the_package() -> None:
    import miner

    texts = [path.read_text() for path in [*DEPLOY.rglob("*.yaml"), *DOCKERFILES]]
    tags = re.findall(r"coalface-(?:miner|trainer):([\d.]+)", "\n".join(texts))
    assert {tag for tag in tags if "." in tag} == {miner.__version__}


def test_nothing_that_is_shipped_is_a_secret_or_a_moving_tag() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            text = path.read_text("utf-8")
            assert "PRIVATE KEY" not in text, path
            assert not re.search(r"coalface_[A-Za-z0-9_-]{40,}", text), path
            assert not re.search(r":latest\b", text), path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --address"),
        (["--address", "http://127.0.0.1:1"], "give --config"),
        (["--address"], "--address needs a value"),
        (["--adress", "x"], "unknown option --adress"),
    ],
)
def test_the_script_says_what_is_missing(arguments: list[str], told: str) -> None:
    done = run(DEPLOY / "submit.sh", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "usage:" in done.stderr


def test_the_health_check_tells_a_miner_that_serves_from_one_that_does_not(tmp_path: Path) -> None:
    miner = ServerThread(make_folder(tmp_path))
    try:
        serving = run(sys.executable, DEPLOY / "health.py", "--address", miner.address)
    finally:
        miner.stop()
    assert (serving.returncode, serving.stderr) == (0, "")
    nobody = f"127.0.0.1:{free_port()}"
    silent = run(sys.executable, DEPLOY / "health.py", "--address", nobody, "--timeout-s", "1")
    assert silent.returncode == 1
    assert f"{nobody} does not serve: UNAVAILABLE" in silent.stderr
