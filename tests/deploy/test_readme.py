"""The page names files that there are, all of them, and commands that the programs know."""

import re

import pytest
from typer.testing import CliRunner

from miner.cli.main import app
from tests.deploy.shipped import DEPLOY

TEXT = (DEPLOY / "README.md").read_text()


def test_every_shipped_file_is_named() -> None:
    table = TEXT.split("## What was run")[0]
    named = re.findall(r"`([\w./*-]+)`", table)
    folders = ["compose", "docker"]
    for path in DEPLOY.rglob("*"):
        place = path.relative_to(DEPLOY)
        if path.is_file() and place.parts[0] not in folders and path.name != "README.md":
            assert {str(place), place.name} & set(named), place


def test_files_of_commands_are_there() -> None:
    for place in re.findall(r"(?<![\w/])deploy/([\w./]+)", TEXT):
        assert (DEPLOY / place).exists(), place


def test_secrets_are_made_under_the_names_that_the_manifests_mount() -> None:
    made = dict(re.findall(r"create (?:secret generic|configmap) (\S+) (.*)", TEXT))
    for path in (DEPLOY / "kubernetes").glob("*.yaml"):
        for name, items in re.findall(
            r"(?:secretName|configMap:\s+name): (\S+)\s+(?:defaultMode: \d+\s+)?items: (.*)",
            path.read_text(),
        ):
            for key in re.findall(r"key: ([\w.]+)", items):
                assert f"/{key}" in made[name], f"{path.name}: {name} {key}"


@pytest.mark.parametrize("command", sorted(set(re.findall(r"coalface-miner (\w+) (--.*)", TEXT))))
def test_options_of_the_miner_are_known(command: tuple[str, str]) -> None:
    shown = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200"})
    for option in re.findall(r"--[\w-]+", command[1]):
        assert option in shown.output
