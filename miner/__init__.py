"""Coalface's miner: embeds a whole dataset, mines global hard negatives, streams them over gRPC."""

__version__ = "0.1.0"
