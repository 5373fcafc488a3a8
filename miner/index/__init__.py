"""Nearest neighbours over a snapshot. All but the settings is imported by name: FAISS is heavy."""

from miner.index.config import GpuConfig, IndexConfig

__all__ = ["GpuConfig", "IndexConfig"]
