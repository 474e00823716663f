"""A bar of pairs done, by tqdm, which huggingface_hub brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from tqdm.auto import tqdm


class Bar:
    """Counts up to *total* pairs; a context manager that closes the bar."""

    def __init__(self, total: int | None, *, also: Callable[[int], None] | None = None) -> None:
        self._bar: tqdm[None] = tqdm(total=total, unit="pair", desc="rerank")
        self._also = also

    def count(self, pairs: int) -> None:
        """Note that *pairs* more are done."""
        self._bar.update(pairs)
        if self._also is not None:
            self._also(pairs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
