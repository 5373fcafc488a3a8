"""The whole configuration of the miner, composed from the parts' own models."""

from miner.config.load import load_config, parse_config, render_config
from miner.config.mine import MineConfig
from miner.config.model import MinerConfig, RefreshConfig

__all__ = [
    "MineConfig",
    "MinerConfig",
    "RefreshConfig",
    "load_config",
    "parse_config",
    "render_config",
]
