"""Coalface's trainer: the feed that any training loop can use, and a reference trainer."""

__version__ = "0.1.0"
