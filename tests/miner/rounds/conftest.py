"""A store on loopback for the archive's tests."""

from tests.miner.rounds.s3_fixtures import folder, one_s3, s3

__all__ = ["folder", "one_s3", "s3"]
