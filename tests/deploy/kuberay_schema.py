"""JSON schemas of ray.io/v1 objects, as far as `deploy/` uses them.

Written by hand from KubeRay's field reference, not taken from its definitions.

Pod templates stand for any object here: Kubernetes's own schemas check them.
"""

from typing import Any

__all__ = ["RAY_CLUSTER", "RAY_JOB"]


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_FLAG = {"type": "boolean"}
_TEMPLATE = {"type": "object", "required": ["spec"]}
# KubeRay turns them into options of `ray start`: strings only.
_START = {"type": "object", "additionalProperties": {"type": "string"}}
_NAMED = {"type": "object", "required": ["name"]}

_HEAD = _object(
    ("template",),
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=_START,
    template=_TEMPLATE,
)
_WORKERS = _object(
    ("groupName", "template"),
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    rayStartParams=_START,
    template=_TEMPLATE,
)
_CLUSTER = _object(
    ("headGroupSpec",),
    rayVersion=_TEXT,
    authOptions=_object(mode={"enum": ["disabled", "token"]}, secretName=_TEXT),
    suspend=_FLAG,
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)

RAY_CLUSTER = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=_NAMED,
    spec=_CLUSTER,
)
RAY_JOB = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_NAMED,
    spec=_object(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=_TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=_COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=_FLAG,
        ttlSecondsAfterFinished=_COUNT,
        suspend=_FLAG,
        runtimeEnvYAML=_TEXT,
        entrypointNumCpus={"type": "number"},
        rayClusterSpec=_CLUSTER,
    ),
)
