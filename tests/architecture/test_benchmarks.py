"""Benchmarks are no tests, but each can be loaded: nothing that they stand on has gone."""

import importlib
import pkgutil

import pytest

import tests.bench
import tests.bench.datasets

MODULES = [
    info.name
    for package in (tests.bench, tests.bench.datasets)
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
]
OF_PEERS = ("tests.bench.side_by_side",)
"""Compares with libraries that ``make setup`` does not install."""


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_can_be_loaded(name: str) -> None:
    if name in OF_PEERS:
        pytest.importorskip("sentence_transformers", reason="make bench-peers installs it")
    importlib.import_module(name)
