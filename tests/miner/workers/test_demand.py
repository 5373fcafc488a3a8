"""What an autoscaler is told, by the note that it reads, on a Ray without one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.autoscaler import sdk
from ray.experimental.internal_kv import _internal_kv_get

from miner.workers.config import WorkersConfig
from miner.workers.demand import requested

pytestmark = pytest.mark.usefixtures("ray_local")

WORKERS = WorkersConfig(
    num_embed_workers=2, gpus_per_worker=1, search_shards=2, search_cpus=4, cpus_per_worker=0.5
)
EMBED, SEARCH = {"CPU": 0.5, "GPU": 1.0}, {"CPU": 4.0}


def note() -> Any:
    return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "null")


def test_all_actors_are_asked_for_together_and_released_at_the_end_whatever_happens() -> None:
    def fail() -> None:
        with requested(WORKERS):
            assert note() == [EMBED, EMBED, SEARCH, SEARCH]
            assert ray.get(ray.remote(lambda: 1).remote()) == 1, "no autoscaler, no harm"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert note() == []
    as_many_as_there_are = WorkersConfig(num_embed_workers=None)
    with requested(as_many_as_there_are):
        assert note() == [{"CPU": 1.0}, {"CPU": 1.0}]
    sdk.request_resources(bundles=[{"CPU": 7}])
    with requested(WORKERS.model_copy(update={"request_early": False})):
        assert note() == [{"CPU": 7}], "another job's"
    assert note() == [{"CPU": 7}]


def test_a_request_that_fails_is_logged_and_the_service_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> Callable[..., None]:
        raise ConnectionError("no GCS")

    monkeypatch.setattr(sdk, "request_resources", fail)
    with caplog.at_level(logging.WARNING, "miner.workers.demand"), requested(WORKERS):
        pass
    assert caplog.text.count("the autoscaler cannot be told what is needed") == 2
