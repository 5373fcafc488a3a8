"""Work that Ray spreads over machines: embedding and search. All but the settings by name."""

from miner.workers.config import WorkersConfig

__all__ = ["WorkersConfig"]
