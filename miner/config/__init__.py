"""The whole configuration of the miner, composed from the parts' own models."""

from miner.config.load import load_config, render_config
from miner.config.model import MinerConfig, RefreshConfig

__all__ = ["MinerConfig", "RefreshConfig", "load_config", "render_config"]
