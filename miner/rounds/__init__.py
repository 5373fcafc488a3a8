"""The round log: what has been mined, sealed on disk, whole or not at all."""

from miner.rounds.config import RoundsConfig
from miner.rounds.log import RoundLog
from miner.rounds.manifest import RoundDraft, RoundManifest
from miner.rounds.writer import RoundWriter

__all__ = ["RoundDraft", "RoundLog", "RoundManifest", "RoundWriter", "RoundsConfig"]
