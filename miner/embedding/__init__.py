"""The encoder and its weights. All but the settings is imported by name: torch is heavy."""

from miner.embedding.config import EncoderConfig

__all__ = ["EncoderConfig"]
