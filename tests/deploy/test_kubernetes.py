"""The manifests: valid by their schemas, hardened, and in agreement with each other."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from torch.distributed import run as torchrun

from tests.deploy.kuberay_schema import RAY_CLUSTER, RAY_JOB
from tests.deploy.shipped import DEPLOY, documents, manifests, pod_templates

KUBERNETES = "1.33"
MANIFESTS = manifests()
TEMPLATES = dict(pod_templates())
BY_KIND = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB}


def containers(template: Any) -> list[Any]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_validate(name: str) -> None:
    manifest = MANIFESTS[name]
    if manifest["kind"] in BY_KIND:
        jsonschema.validate(manifest, BY_KIND[manifest["kind"]])
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    if manifest["kind"] != "Namespace":
        assert manifest["metadata"]["namespace"] == "coalface"


@pytest.mark.parametrize("name", TEMPLATES)
def test_pods_validate_and_are_hardened(name: str) -> None:
    template = TEMPLATES[name]
    whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
    kubernetes_validate.validate(whole | {"template": template}, KUBERNETES, strict=True)
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in containers(template):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert re.fullmatch(r"\S+:\d+\.\d+\.\d+", container["image"]), "no version"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_claims_are_declared_and_secrets_are_no_part_of_the_files() -> None:
    assert not [name for name in MANIFESTS if ": Secret/" in name]
    claims = {
        m["metadata"]["name"] for m in MANIFESTS.values() if m["kind"] == "PersistentVolumeClaim"
    }
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for template in TEMPLATES.values()
        for volume in template["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used == claims


def test_a_job_gets_the_cluster_that_stands_alone_and_the_runtime_env_of_the_script() -> None:
    cluster, job = MANIFESTS["raycluster.yaml: RayCluster/coalface"], rayjob()
    assert job["rayClusterSpec"] == cluster["spec"]
    assert yaml.safe_load(job["runtimeEnvYAML"]) == documents(DEPLOY / "runtime_env.yaml")[0]
    assert cluster["spec"]["rayVersion"] == importlib.metadata.version("ray")


def rayjob() -> Any:
    return MANIFESTS["rayjob.yaml: RayJob/coalface"]["spec"]


def test_the_service_finds_the_head_and_its_ports() -> None:
    config = documents(DEPLOY / "config/miner.yaml")[0]
    head = rayjob()["rayClusterSpec"]["headGroupSpec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in containers(head)[0]["ports"]}
    assert ports["grpc"] == config["serving"]["port"]
    assert ports["metrics"] == config["metrics"]["port"]
    service = MANIFESTS["network.yaml: Service/coalface-miner"]["spec"]
    assert service["selector"].items() <= head["metadata"]["labels"].items()
    for port in service["ports"]:
        assert ports[port["targetPort"]] == port["port"]
    trainer = documents(DEPLOY / "config/trainer.yaml")[0]
    assert trainer["miner"]["address"] == f"coalface-miner:{ports['grpc']}"


def test_a_worker_can_hold_the_search_beside_an_embedding_worker() -> None:
    workers = documents(DEPLOY / "config/miner.yaml")[0]["workers"]
    (group,) = rayjob()["rayClusterSpec"]["workerGroupSpecs"]
    limits = containers(group["template"])[0]["resources"]["limits"]
    assert workers["cpus_per_worker"] + workers["search_cpus"] <= int(limits["cpu"])
    num_gpus = group["replicas"] * int(limits["nvidia.com/gpu"])
    assert workers["num_embed_workers"] * workers["gpus_per_worker"] <= num_gpus


def test_the_entrypoint_stays_on_the_head() -> None:
    job = rayjob()
    assert not [key for key in job if key.startswith("entrypointNum")]
    assert job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_policy_lets_in_somebody_named() -> None:
    policies = [m["spec"] for m in MANIFESTS.values() if m["kind"] == "NetworkPolicy"]
    assert [p for p in policies if not p["podSelector"] and "ingress" not in p], "deny by default"
    for policy in policies:
        for rule in policy.get("ingress", []):
            assert rule["from"]


def test_torchrun_knows_the_options_of_the_trainer() -> None:
    template = TEMPLATES["trainer.yaml: Job/coalface-trainer"]
    (trainer,) = template["spec"]["containers"]
    assert trainer["command"] == ["torchrun"]
    parsed = torchrun.parse_args(trainer["args"])
    service = MANIFESTS["network.yaml: Service/coalface-trainer"]["spec"]
    host, _, port = parsed.rdzv_endpoint.partition(":")
    assert host == f"coalface-trainer-0.{template['spec']['subdomain']}"
    assert int(port) in {each["port"] for each in service["ports"]}
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    assert service["clusterIP"] == "None"
    assert parsed.training_script == "trainer"
    assert (
        parsed.nnodes == f"{MANIFESTS['trainer.yaml: Job/coalface-trainer']['spec']['completions']}"
    )


@pytest.mark.parametrize(
    ("template", "config"),
    [
        ("rayjob.yaml: RayJob/coalface head", "miner.yaml"),
        ("trainer.yaml: Job/coalface-trainer", "trainer.yaml"),
    ],
)
def test_every_path_of_a_configuration_is_mounted(template: str, config: str) -> None:
    pod = TEMPLATES[template]["spec"]
    mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    paths = absolute_paths(documents(DEPLOY / "config" / config)[0])
    for path in [*paths, Path("/etc/coalface/config", config)]:
        below = [mount for mount in mounts if path.is_relative_to(mount)]
        assert below, f"{path} is on no volume"
        volume = volumes[mounts[below[0]]]
        held = volume.get("secret") or volume.get("configMap")
        if held is not None:
            assert str(path.relative_to(below[0])) in {item["path"] for item in held["items"]}


def absolute_paths(value: Any) -> list[Path]:
    if isinstance(value, dict):
        return [path for each in value.values() for path in absolute_paths(each)]
    is_path = isinstance(value, str) and value.startswith("/")
    return [Path(value)] if is_path else []
