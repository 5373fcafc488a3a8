"""The small dataset of the integration tests."""

from tests.integration.conftest import dataset

__all__ = ["dataset"]
