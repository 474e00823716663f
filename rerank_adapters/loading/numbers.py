"""Everything but the texts that decides a number: what a cached score is found by."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version

from ..config import RerankerConfig
from .exits import ChosenExit
from .finding import Found
from .meaning import Meaning

LIBRARIES = ("rerank-adapters", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")
"""A score is of their versions too."""

CHANGE_NO_NUMBER = frozenset(
    {
        *("model", "revision", "cache_folder", "local_files_only", "token"),  # which files: by hash
        *("num_workers", "num_threads", "max_batch_tokens", "tokenizer"),  # within law 2
        *("max_queue_pairs", "max_queue_tokens", "when_full", "cache", "document_tokens"),
        "calibration",  # of what a cache holds
        "remote",
        *("on_empty_text", "rerank_count", "rest", "fuse"),  # rules of rankings
        "early_exit",  # by the numbers of its head, below
    }
)
"""Options that are left out; a new one is in, until somebody has thought about it."""


def numbers_context(
    found: Found, meaning: Meaning, devices: tuple[str, ...], exits: ChosenExit | None = None
) -> bytes:
    """The checkpoint's content, how it is run, read and written, as bytes to hash.

    *devices* are those that really run it, *exits* where scoring may end early.
    """
    config, tokenizer = found.config, meaning.tokenizer
    options = {
        field.name: getattr(config, field.name)
        for field in fields(RerankerConfig)
        if field.name not in CHANGE_NO_NUMBER
    }
    facts = (
        ("files", found.fingerprint, found.code, found.backend, found.selection.file, devices),
        ("options", sorted(options.items())),
        ("family", meaning.family),
        ("tokenizer", tokenizer.max_length, tokenizer.pad_side, tokenizer.whole_pairs_reason),
        ("early exit", None if exits is None else exits.identity),
        ("libraries", [(name, _version(name)) for name in LIBRARIES]),
    )
    return repr(facts).encode("utf-8", "backslashreplace")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
