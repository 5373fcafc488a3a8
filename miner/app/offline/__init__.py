"""Mining without a service: arrays in, one sealed round out, flat triplets from any round.

Loads neither Ray nor gRPC nor torch.
"""

from miner.app.offline.export import ExportReport, ExportRequest, export_round
from miner.app.offline.mined_round import MinedRound, mine
from miner.app.offline.names import RowNames, find_round, open_names

__all__ = [
    "ExportReport",
    "ExportRequest",
    "MinedRound",
    "RowNames",
    "export_round",
    "find_round",
    "mine",
    "open_names",
]
