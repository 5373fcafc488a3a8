"""Which role each rpc needs: the one table. What is not in it is refused.

It knows neither clients nor credentials. Roles include those before them:

    read   train: open a run, stream it, commit its steps, and look at everything
    write  also steer what is mined: weights, refreshes, difficulties
    admin  also stop the service, and look into the server itself

Opening a run and committing its steps change something, and yet need no more than ``read``: a
trainer cannot train without them. Runs have no owner: who may read can also plan and commit steps
of another's run, up to which its rounds may then be removed; but what is planned never changes, and
no commit moves backwards.
"""

from typing import Literal, get_args

__all__ = ["NEEDED_ROLES", "Role", "includes"]

Role = Literal["read", "write", "admin"]

_ORDER: tuple[Role, ...] = get_args(Role)
_MINING = "/coalface.v1.MiningService"
_HEALTH = "/grpc.health.v1.Health"
_CHANNELZ = "/grpc.channelz.v1.Channelz"

NEEDED_ROLES: dict[str, Role | None] = {
    f"{_MINING}/OpenRun": "read",
    f"{_MINING}/StreamTriplets": "read",
    f"{_MINING}/CommitStep": "read",
    f"{_MINING}/QueryNegatives": "read",
    f"{_MINING}/GetSamples": "read",
    f"{_MINING}/GetStatus": "read",
    f"{_MINING}/WatchStatus": "read",
    f"{_MINING}/ListRounds": "read",
    f"{_MINING}/GetRound": "read",
    f"{_MINING}/AnnounceWeights": "write",
    f"{_MINING}/UploadWeights": "write",
    f"{_MINING}/RequestRefresh": "write",
    f"{_MINING}/ReportDifficulty": "write",
    f"{_MINING}/Drain": "admin",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "admin",
    f"{_CHANNELZ}/GetTopChannels": "admin",
    f"{_CHANNELZ}/GetServers": "admin",
    f"{_CHANNELZ}/GetServer": "admin",
    f"{_CHANNELZ}/GetServerSockets": "admin",
    f"{_CHANNELZ}/GetChannel": "admin",
    f"{_CHANNELZ}/GetSubchannel": "admin",
    f"{_CHANNELZ}/GetSocket": "admin",
    # Whoever keeps the service running asks these, and holds no token.
    f"{_HEALTH}/Check": None,
    f"{_HEALTH}/Watch": None,
}
"""The least role by full name of the rpc; None where nobody has to say who they are."""


def includes(held: Role, needed: Role) -> bool:
    """Whether who holds a role may do what needs another."""
    return _ORDER.index(held) >= _ORDER.index(needed)
