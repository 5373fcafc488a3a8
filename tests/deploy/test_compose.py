"""The Compose file: read by an implementation of its specification, hardened, all files there."""

import re
from pathlib import Path

import compose_spec
import pytest
import yaml
from torch.distributed import run as torchrun

from miner.config import MinerConfig, load_config
from tests.deploy.shipped import DEPLOY, documents

FILE = DEPLOY / "compose/compose.yaml"
COMPOSE = documents(FILE)[0]
SERVICES = COMPOSE["services"]


def test_the_file_is_compose() -> None:
    settled = re.sub(r"\$\{\w+:\?[^}]*\}", "/given", FILE.read_text())
    read = compose_spec.PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(settled)))
    read.validate()
    assert set(read.service_names()) == {"miner", "trainer", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\d+:\d+", service["user"])
    assert not service["user"].startswith("0:")
    assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+(-cpu)?", service["image"]), "no version"
    assert {"cpus", "memory"} == service["deploy"]["resources"]["limits"].keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_every_file_that_is_mounted_or_built_from_is_there() -> None:
    for name, service in SERVICES.items():
        for mount in service["volumes"]:
            if mount["type"] == "bind":
                assert mount["read_only"] is True
                there = mount["source"].startswith("$") or (FILE.parent / mount["source"]).exists()
                assert there, f"{name}: {mount['source']}"
            else:
                assert mount["source"] in COMPOSE["volumes"]
        if "build" in service:
            context = FILE.parent / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()


def test_commands_are_ones_that_the_programs_know() -> None:
    program, command, config, *options = SERVICES["miner"]["command"]
    assert (program, command) == ("coalface-miner", "serve")
    overrides = [option.removeprefix("--set=") for option in options]
    miner = load_config(MinerConfig, DEPLOY / "config/miner.yaml", overrides)
    assert miner.workers.gpus_per_worker == 0
    limit = float(SERVICES["miner"]["deploy"]["resources"]["limits"]["cpus"])
    assert miner.workers.cpus_per_worker + miner.workers.search_cpus <= limit
    assert config == "--config=/etc/coalface/config/miner.yaml"
    trainer = torchrun.parse_args(SERVICES["trainer"]["command"][1:])
    assert (trainer.training_script, trainer.standalone) == ("trainer", True)


def test_secrets_reach_the_places_that_the_configurations_name() -> None:
    made = {"ca.crt", "tls.crt", "tls.key", "tokens.yaml", "trainer.token", "grafana.password"}
    sources = COMPOSE["secrets"]
    assert {Path(source["file"]).name for source in sources.values()} == made
    for service, config in (("miner", "miner.yaml"), ("trainer", "trainer.yaml")):
        placed = {given["target"] for given in SERVICES[service]["secrets"]}
        text = (DEPLOY / "config" / config).read_text()
        named = set(re.findall(r"/etc/coalface/\S+", text))
        assert named <= placed
        for given in SERVICES[service]["secrets"]:
            assert Path(given["target"]).name == Path(sources[given["source"]]["file"]).name
