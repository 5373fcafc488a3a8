"""What `deploy/` ships, read for tests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

__all__ = ["DEPLOY", "documents", "made_secrets", "manifests", "pod_templates"]

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def manifests() -> dict[str, Any]:
    """Every Kubernetes object that is shipped, by ``file: Kind/name``."""
    found = {}
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for each in documents(path):
            found[f"{path.name}: {each['kind']}/{each['metadata']['name']}"] = each
    return found


def pod_templates() -> Iterator[tuple[str, Any]]:
    """Every pod template in the manifests, with where it stands."""
    for name, manifest in manifests().items():
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Job":
            yield name, spec["template"]
        cluster = spec.get("rayClusterSpec", spec)
        if "headGroupSpec" in cluster:
            yield f"{name} head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{name} {group['groupName']}", group["template"]


def made_secrets(folder: Path) -> Path:
    """What ``secrets.sh`` makes."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY)}
    command = [str(DEPLOY / "secrets.sh"), str(folder)]
    done = subprocess.run(
        command, env=environment, cwd=folder.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder
