"""Datasets: the catalog of ids and identities, and the row store that samples are read from."""

from miner.data.catalog import Catalog, scan_catalog
from miner.data.config import DatasetConfig
from miner.data.gather import Scattered
from miner.data.ingest import ingest
from miner.data.row_store import RowStore

__all__ = ["Catalog", "DatasetConfig", "RowStore", "Scattered", "ingest", "scan_catalog"]
