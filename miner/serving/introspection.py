"""What a server tells about itself where it is configured: its rpcs, and its connections.

Both are for admins alone, as :mod:`miner.serving.roles` says.
"""

from typing import Any

from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection

from miner.serving.config import ServingConfig
from protos.coalface.v1 import mining_pb2

__all__ = ["add_introspection", "introspection_options"]


def introspection_options(config: ServingConfig) -> list[tuple[str, int]]:
    """Options that a server must be made with: the books that channelz reads cost some memory."""
    return [("grpc.enable_channelz", int(config.channelz))]


def add_introspection(server: Any, config: ServingConfig) -> None:
    """Serve reflection and channelz, each where configured."""
    if config.reflection:
        names = [service.full_name for service in mining_pb2.DESCRIPTOR.services_by_name.values()]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    if config.channelz:
        channelz.add_channelz_servicer(server)
