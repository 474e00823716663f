"""One local Ray for all tests of the room."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Its address. Four logical CPUs: with two a job that resumes would wait for ever."""
    ray = pytest.importorskip("ray", reason="ray is not installed: make test-ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by itself: starved beside other tests
    for check in ("READY", "HEALTH"):  # five and ten seconds are short beside other tests
        os.environ.setdefault(f"RAY_SERVE_PROXY_{check}_CHECK_TIMEOUT_S", "120")
    context = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
    )
    yield context.address_info["address"]
    ray.shutdown()
