"""The small dataset of real images that a real service mines."""

from tests.integration.conftest import dataset

__all__ = ["dataset"]
