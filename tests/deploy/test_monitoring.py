"""Dashboard, alerts and scrape targets speak of metrics, labels and ports that there are."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.shipped import DEPLOY, documents
from tests.miner.serving.metrics.test_round_metrics import mined_folder
from tests.trainer.feed.served_miner import ServerThread
from trainer.feed import MinerClient, RunParameters
from trainer.meters import TrainingMeters

COMPOSE = DEPLOY / "compose"
DASHBOARD = json.loads((COMPOSE / "grafana/dashboards/coalface.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
ALWAYS = {"instance", "job", "le"}

Exported = dict[str, set[str]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Names of time series, each with its labels, as a miner and a trainer really tell them."""
    miner = ServerThread(mined_folder(tmp_path_factory.mktemp("miner")))
    try:
        with MinerClient(miner.address, patience_s=10) as client:
            client.open_run(RunParameters(run_id="run", batch_rows=24))
        told = [*parsed(generate_latest(miner.server.registry))]
    finally:
        miner.stop()
    told += parsed(generate_latest(TrainingMeters("run", rank=0).registry))
    return {name: labels for family in told for name, labels in series(family)}


def parsed(text: bytes) -> Iterable[Metric]:
    return text_string_to_metric_families(text.decode())


def series(family: Metric) -> Iterator[tuple[str, set[str]]]:
    labels = {label for sample in family.samples for label in sample.labels}
    for suffix in SUFFIXES.get(family.type, [""]):
        yield family.name + suffix, labels


def metrics_in(query: str) -> set[str]:
    return set(re.findall(r"\bcoalface_\w+", query))


def labels_in(query: str) -> set[str]:
    grouped = re.findall(r"\bby\s*\(([^)]*)\)", query)
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
    return {label.strip() for group in grouped for label in group.split(",")} | set(matched)


def queries() -> Iterator[tuple[str, str, str]]:
    """Where each query stands, the query, and the text that its labels are put into."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"], target["legendFormat"]
    for group in documents(COMPOSE / "alerts.yaml")[0]["groups"]:
        for rule in group["rules"]:
            text = rule["annotations"]["summary"].replace("$labels.", "")
            yield f"alert {rule['alert']}", rule["expr"], text


@pytest.mark.parametrize(("where", "query", "legend"), list(queries()))
def test_queries_ask_for_what_is_exported(
    where: str, query: str, legend: str, exported: Exported
) -> None:
    metrics = metrics_in(query)
    assert metrics or query.startswith("up{"), where
    assert metrics <= exported.keys(), f"{where} asks for {metrics - exported.keys()}"
    known = ALWAYS.union(*(exported[name] for name in metrics))
    wanted = labels_in(query) | set(re.findall(r"{{\s*(\w+)\s*}}", legend))
    assert wanted <= known, f"{where} wants labels {wanted - known} of {metrics}"
    assert query.count("(") == query.count(")")


def test_the_reader_of_queries_finds_names_and_labels() -> None:
    query = 'sum by (le, method) (rate(coalface_miner_rpcs_total{code="OK"}[5m]))'
    assert metrics_in(query) == {"coalface_miner_rpcs_total"}
    assert labels_in(query) == {"le", "method", "code"}


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_prometheus_scrapes_the_ports_of_the_configurations() -> None:
    compose = documents(COMPOSE / "compose.yaml")[0]
    jobs = documents(COMPOSE / "prometheus.yaml")[0]["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    miner = documents(DEPLOY / "config/miner.yaml")[0]["metrics"]["port"]
    trainer = documents(DEPLOY / "config/trainer.yaml")[0]["metrics"]["port"]
    (ranks,) = (
        int(option.partition("=")[2])
        for option in compose["services"]["trainer"]["command"]
        if option.startswith("--nproc-per-node")
    )
    assert targets == {
        "coalface-miner": [f"miner:{miner}"],
        "coalface-trainer": [f"trainer:{trainer + rank}" for rank in range(ranks)],
    }
    assert {target.partition(":")[0] for job in targets.values() for target in job} <= set(
        compose["services"]
    )


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    provisioning = COMPOSE / "grafana/provisioning"
    (source,) = documents(provisioning / "datasources/prometheus.yaml")[0]["datasources"]
    assert DASHBOARD["templating"]["list"][0]["current"]["value"] == source["uid"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = documents(provisioning / "dashboards/coalface.yaml")[0]["providers"]
    mounts: list[Any] = documents(COMPOSE / "compose.yaml")[0]["services"]["grafana"]["volumes"]
    places = {mount["target"]: mount["source"] for mount in mounts}
    assert Path(places[provider["options"]["path"]]) == Path("grafana/dashboards")
