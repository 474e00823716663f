"""How this backend is to be used, by the kind of device it runs on."""

from __future__ import annotations

from typing import Literal

from ...protocols import BackendTraits
from .parts import Parts

BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536, "mps": 8192}
"""Tokens per forward, by kind of device: on CPU what fits a cache, on GPU what fills it."""

FREE_PADDING = {"cpu": 24, "cuda": 4096, "mps": 1024}
"""Tokens of padding that cost less than one more forward, by kind of device."""

MAX_PADDING = {"cpu": 0.03}
"""Share of padding beyond those, 10 % elsewhere: a CPU computes padding as slowly as text."""


def traits_of(
    kind: str,
    *,
    packed: bool,
    wants: Literal["tokens", "texts"],
    parts: Parts | None,
    why_whole: str,
) -> BackendTraits:
    """Return the traits on a device of *kind*, for the packed pass or for one that pads."""
    return BackendTraits(
        device_kind=kind,
        # One prepares and copies while the other computes; CPU threads share one pool anyway.
        workers=2 if kind == "cuda" else 1,
        batch_tokens=BATCH_TOKENS.get(kind, BATCH_TOKENS["cpu"]),
        max_padding=MAX_PADDING.get(kind, 0.10),
        free_padding=FREE_PADDING.get(kind, 0),
        pads=not packed,
        survives_fork=False,  # torch's thread pool hangs in a forked child
        wants=wants,
        exit_layers=() if parts is None else parts.layers,
        why_whole=why_whole,
    )
