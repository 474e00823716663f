"""What bulk and server share: what may travel to another process, its threads, Ray's start."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray

from ..config import LIVE, RerankerConfig
from ..errors import BackendError, ConfigError

STATISTICS = "RAY_USAGE_STATS_ENABLED"


def travelling(config: RerankerConfig, cpus: float, gpus: float) -> RerankerConfig:
    """*config* for an actor that has so many CPUs and GPUs. Raises ConfigError.

    On CPUs num_threads, where nobody said it, is the actor's share: by itself each engine would
    take the whole machine. torch has its threads from Ray, by OMP_NUM_THREADS.
    """
    if not isinstance(config, RerankerConfig):
        raise ConfigError(f"config must be a RerankerConfig: got {config!r:.80}")
    if config.token is not None:
        raise ConfigError(
            "token must be None, for it is never pickled: set HF_TOKEN where the actors run"
        )
    for name in LIVE:
        if getattr(config, name) is not None:
            raise ConfigError(f"{name} must be None: it is alive, and cannot go to an actor")
    threaded = config.backend in ("onnx", "openvino") or (
        config.backend == "auto" and config.model == RerankerConfig().model
    )
    if gpus or not threaded or config.num_threads is not None or config.remote is not None:
        return config
    return replace(config, num_threads=max(1, int(cpus)))


def keep_statistics_home() -> None:
    """Ray's usage statistics are off, unless the user's own setting says otherwise."""
    own = Path(os.environ.get("RAY_USAGE_STATS_CONFIG_PATH", "~/.ray/config.json")).expanduser()
    try:
        said = "usage_stats" in json.loads(own.read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        said = False
    if not said:
        os.environ.setdefault(STATISTICS, "0")


@contextmanager
def running(cpus: float, gpus: float) -> Iterator[None]:
    """Ray while inside: the one that runs, the cluster of RAY_ADDRESS, or one of our own here.

    Ours has at least *cpus* logical CPUs, however many the machine has, and ends with the block.
    ConfigError where a cluster has fewer, for then Ray would wait for ever; BackendError where Ray
    does not start.
    """
    ours = not ray.is_initialized()
    if ours:
        _start(max(os.cpu_count() or 1, -int(-cpus // 1)))
    try:
        has = ray.cluster_resources()
        why = ", two of them beside the actors to read and to resume"
        for name, needed, words in (("CPU", cpus, why), ("GPU", gpus, "")):
            if has.get(name, 0) < needed:
                raise ConfigError(
                    f"the cluster must have {needed:g} {name}s{words}: got {has.get(name, 0):g}"
                )
        yield
    finally:
        if ours:
            ray.shutdown()


def _start(logical: int) -> None:
    """Join the cluster of RAY_ADDRESS, or begin one of so many logical CPUs. BackendError."""
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init()
        else:
            ray.init(address="local", num_cpus=logical, include_dashboard=False)
    except Exception as error:  # Ray's are of any kind, a plain Exception among them
        which = f"the cluster of RAY_ADDRESS={address}" if address else "a Ray of one's own"
        raise BackendError(f"{which} must start: {error}") from error
