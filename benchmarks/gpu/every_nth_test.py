"""A pytest plugin: run every n-th test only. SAEFAST_SHARD = "i/n". pytest-xdist may not be installed on a lent machine."""

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    shard, n = map(int, os.environ["SAEFAST_SHARD"].split("/"))
    items[:] = items[shard::n]
