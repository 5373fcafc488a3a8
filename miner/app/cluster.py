"""Ray as the service uses it: joined or started, with the serving actor on the driver's machine."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from miner.app.accepted import copies_folder
from miner.app.service_actor import MiningServiceActor
from miner.config import MinerConfig
from miner.errors import CoalfaceError, ConfigError, NotReadyError
from miner.filesystems import is_uri
from miner.logs import chosen_format
from miner.serving.metrics.config import MetricsConfig
from miner.serving.metrics.endpoint import MetricsEndpoint
from miner.workers.remote import Resources, Watch, not_started

__all__ = ["joined_ray", "reason_of", "resolved", "start_actor", "told_of"]

MOST_CHARACTERS = 1000


def resolved(config: MinerConfig) -> MinerConfig:
    """Fill in what is only known at the start.

    Port 0 becomes a free one: a restarted actor must come back where its clients look. The workers
    may also read the service's own copies of weights, and whatever may be uploaded.

    Raises:
        ConfigError: There is no such host on this machine, or the port for metrics is taken.
    """
    serving, encoder = config.serving.with_absolute_paths(), config.encoder
    metrics = config.metrics
    if serving.port == 0:
        serving = serving.model_copy(update={"port": _free_port(serving.host)})
    if metrics.port is not None:
        metrics = metrics.model_copy(update={"port": _free_metrics_port(metrics)})
    prefixes = (*encoder.weights_prefixes, str(copies_folder(config.state_dir).absolute()))
    largest = max(encoder.max_weights_bytes, serving.max_upload_bytes)
    update = {"weights_prefixes": prefixes, "max_weights_bytes": largest}
    encoder = encoder.model_copy(update=update)
    folders: dict[str, Any] = {
        name: folder.absolute()
        for name in ("state_dir", "store_dir", "snapshots_cache_dir")
        if (folder := getattr(config, name)) is not None
    }
    if config.snapshots_dir is not None and not is_uri(config.snapshots_dir):
        folders["snapshots_dir"] = str(Path(config.snapshots_dir).absolute())
    return config.model_copy(
        update={
            "serving": serving,
            "encoder": encoder,
            **folders,
            "metrics": metrics,
        }
    )


@contextmanager
def joined_ray(config: MinerConfig) -> Iterator[None]:
    """Join the cluster of ``ray_address``, or start Ray on this machine; leave it at the end.

    Raises:
        NotReadyError: There is no cluster at the address.
    """
    import ray

    address = config.ray_address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {}
    if address == "local":
        workers = config.workers
        needed = (workers.num_embed_workers or 1) * workers.cpus_per_worker
        needed += workers.search_shards * workers.search_cpus
        # Ray's own default niceness is 15: a trainer beside the service would starve the stream.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options = {
            "include_dashboard": False,
            "num_cpus": max(os.cpu_count() or 1, math.ceil(needed)),
        }
    try:
        ray.init(address=address, namespace="coalface", configure_logging=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        raise NotReadyError(f"no Ray cluster at {address}: {exc}") from exc
    try:
        yield
    finally:
        ray.shutdown()


def start_actor(config: MinerConfig, log_id: str) -> Any:
    """The serving actor of a log, restarted by Ray for as long as the driver lives.

    It stays on the driver's machine, where its port was chosen and its clients look for it.

    Raises:
        NotReadyError: That machine has not the memory that ``serving.memory_mb`` asks for, or has
            not started the actor within ``workers.placement_timeout_s``.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, timeout_s = ray.get_runtime_context().get_node_id(), config.workers.placement_timeout_s
    num_bytes = (config.serving.memory_mb or 0) * 10**6
    _require_memory(here, num_bytes)
    actor_class: Any = ray.remote(MiningServiceActor)
    options: dict[str, Any] = {"memory": num_bytes} if num_bytes else {}
    try:
        actor = actor_class.options(
            name=f"coalface-service-{log_id}",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=8,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
            **options,
        ).remote(config, chosen_format())
    except ValueError as exc:
        raise NotReadyError(
            f"this cluster has a service on {config.state_dir} already, or has not seen yet that "
            f"its driver is gone: stop it, or try again in a minute ({exc})"
        ) from exc
    if not_started([actor.address.remote()], timeout_s, Watch()):
        ray.kill(actor)
        what = "the serving actor (serving.memory_mb), on the driver's machine,"
        raise NotReadyError(Resources(0, 0, num_bytes).explain_wait(what, timeout_s))
    return actor


def _require_memory(node_id: str, num_bytes: int) -> None:
    """What a machine does not have is not waited for."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    (here,) = (node["Resources"] for node in nodes if node["NodeID"] == node_id)
    if num_bytes > here.get("memory", 0):
        raise NotReadyError(
            f"serving.memory_mb asks for {num_bytes // 10**6} MB on the driver's machine, where "
            f"the serving actor stays, and Ray has {here.get('memory', 0) / 1e6:.0f} MB there: ask "
            "for less, start Ray with more (ray start --memory), or have the driver run on a "
            "larger machine (ray job submit --entrypoint-resources)"
        )


def reason_of(error: Exception) -> str:
    """The last line of an error that came over Ray: what went wrong, without the traceback."""
    return str(error).strip().splitlines()[-1].removeprefix("miner.errors.")


def told_of(error: BaseException) -> str:
    """What clients are told of an error, in at most `MOST_CHARACTERS`.

    The text of the miner's own ones, also where Ray has wrapped it; of others the kind alone, as
    their text may hold paths, values or a whole traceback.

    Example:
        >>> told_of(ZeroDivisionError("secret"))
        "ZeroDivisionError: see the miner's log"
    """
    cause = getattr(error, "cause", error)
    if not isinstance(cause, CoalfaceError):
        return f"{type(cause).__name__}: see the miner's log"
    text = str(cause)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 4]} ..."


def _free_metrics_port(config: MetricsConfig) -> int:
    """Listen there for a moment: what is wrong is told before anything is started."""
    endpoint = MetricsEndpoint(config, CollectorRegistry())
    endpoint.close()
    return endpoint.port


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except OSError as exc:
        raise ConfigError(f"cannot listen on serving.host={host!r}: {exc}") from exc
