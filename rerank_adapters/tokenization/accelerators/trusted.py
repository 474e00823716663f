"""An accelerator under watch: proven at load, sampled ever after, dropped at the first doubt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...futures import done, prepare
from ...texts import whole
from ..gather import Ids
from .proof import proof

logger = logging.getLogger(__name__)

SHARE = 512
"""One text of so many is read by `tokenizers` as well: that costs a thousandth of what is saved."""


class Accelerator(Protocol):
    """Reads texts as a tokenizer would, without special tokens around them."""

    @property
    def name(self) -> str:
        """The library and its version."""
        ...

    def read(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of *texts*, one after the other, and their bounds: (texts + 1,)."""
        ...


class Trusted:
    """Reads texts by *accelerator* as long as nothing shows that *tokenizer* reads them otherwise.

    `reason` says why it does not any more, "" while it does. Safe for threads.
    """

    __slots__ = ("__weakref__", "_accelerator", "_count", "_lock", "_tokenizer", "name", "reason")

    def __init__(
        self, tokenizer: Tokenizer, accelerator: Accelerator, spellings: Sequence[str]
    ) -> None:
        """Compare both on hundreds of texts: *spellings*, what tokens spell, in every position."""
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        self._count = 0
        self._lock = threading.Lock()
        self.name = accelerator.name
        self.reason = ""
        texts = proof(spellings)
        ids = self._read(texts)
        if ids is not None and (row := self._difference(texts, ids)) is not None:
            self.reason = f"{self.name} reads {texts[row]!r:.80} unlike tokenizers"

    def read(self, texts: Sequence[str]) -> list[Ids] | None:
        """Return the ids of each of *texts*, or None where `tokenizers` has to read them."""
        if self.reason or (ids := self._read(texts)) is None:
            return None
        with self._lock:
            first = -self._count % SHARE
            self._count += len(texts)
        if rows := range(first, len(texts), SHARE):
            self._watch([texts[row] for row in rows], [ids[row].copy() for row in rows])
        return ids

    def _read(self, texts: Sequence[str]) -> list[Ids] | None:
        try:
            try:
                ids, bounds = self._accelerator.read(texts)
            except UnicodeEncodeError:  # half a character somewhere
                ids, bounds = self._accelerator.read(list(map(whole, texts)))
            flat, ends = ids.view(np.int32), bounds.tolist()
            return [flat[start:end] for start, end in pairwise(ends)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  # a panic in Rust is no Exception
            if self._drop(f"{self.name} failed: {type(error).__name__}: {error}"):
                logger.info("%s; tokenizers reads texts from now on", self.reason)
            return None

    def _watch(self, texts: Sequence[str], ids: Sequence[Ids]) -> None:
        """Compare with `tokenizers` in a preparing thread: nobody waits for it."""

        def compare() -> Future[None]:
            if self._difference(texts, ids) is not None and self._drop(
                f"{self.name} read a text unlike tokenizers"
            ):
                logger.warning(
                    "%s, which reads texts from now on: scores since load may be inexact",
                    self.reason,
                )
            return done(None)

        try:
            prepare(compare, ticket=None)
        except RuntimeError:  # the interpreter is ending
            return

    def _difference(self, texts: Sequence[str], ids: Sequence[Ids]) -> int | None:
        """Return the first of *texts* that `tokenizers` reads otherwise than as *ids*."""
        read = self._tokenizer.encode_batch_fast(list(map(whole, texts)), add_special_tokens=False)
        pairs = zip(read, ids, strict=True)
        return next((row for row, (it, own) in enumerate(pairs) if it.ids != own.tolist()), None)

    def _drop(self, reason: str) -> bool:
        """Trust it no more; whether it was trusted until now."""
        with self._lock:
            first, self.reason = not self.reason, self.reason or reason
        return first
