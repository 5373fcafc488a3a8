"""An autoscaling cluster, as Ray's own tests make one: its machines are raylets of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.experimental.internal_kv import _internal_kv_get

from tests.integration.loop import wait_until
from tests.integration.mining import Mining

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

HEAD = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": "f" * 51 + "00000",
}


def cluster_config(address: str) -> dict[str, Any]:
    """Up to two nodes of four CPUs, of which none is there at first."""
    empty = ["initialization_commands", "setup_commands", "head_setup_commands", "rsync_exclude"]
    empty += ["worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"]
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "node": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 2},
        },
        "upscaling_speed": 9999,
        "idle_timeout_minutes": 5,
        "rsync_filter": [],
        "cluster_synced_files": [],
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in empty},
    }


def test_machines_for_the_search_come_before_there_is_anything_to_search(tmp_path: Path) -> None:
    mining = Mining(tmp_path / "m", {"search_cpus": 4})
    with mining.nodes(autoscaling=cluster_config, **HEAD) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        try:
            with mining.driver(cluster):
                wait_until(lambda: ray.cluster_resources().get("CPU") == 8.0, "two nodes")
                assert mining.log.sealed_ids() == [1], "only the round that needs no search"
                mining.announce(1)
                mining.wait_for_round(2)
                mining.assert_as_undisturbed(2, cluster)
            assert json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)) == []
        finally:
            ray.shutdown()


def test_the_newer_autoscaler_which_kuberay_runs_gets_the_request_too(tmp_path: Path) -> None:
    mining = Mining(tmp_path / "m", {"search_cpus": 3, "search_shards": 2})
    with mining.nodes(1, RAY_enable_autoscaler_v2="1") as cluster:

        def requested() -> list[tuple[dict[str, float], int]]:
            state = get_cluster_resource_state(GcsClient(cluster.address))
            parts = [
                p for asked in state.cluster_resource_constraints for p in asked.resource_requests
            ]
            return [(dict(part.request.resources_bundle), part.count) for part in parts]

        with mining.driver(cluster):
            assert requested() == [({"CPU": 1.0}, 1), ({"CPU": 3.0}, 2)]
        assert requested() == []
