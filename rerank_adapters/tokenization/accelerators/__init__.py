"""What reads texts in place of `tokenizers`, faster, where it was proven to read them alike.

Ids of texts by themselves, nothing else: offsets, pairs and templates stay with `tokenizers`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from importlib.util import find_spec
from weakref import WeakValueDictionary

from tokenizers import Tokenizer

from ...config import TokenizerName
from ...errors import ConfigError, MissingDependencyError
from .trusted import Accelerator, Trusted

__all__ = ["Accelerator", "Trusted", "accelerated"]

LIBRARY, EXTRA = "nanotoken", "fast-tokenizers"

_SHARED: WeakValueDictionary[str, Trusted] = WeakValueDictionary()
_LOCK = threading.Lock()


def accelerated(
    tokenizer: Tokenizer, choice: TokenizerName, spellings: Iterable[str]
) -> tuple[Trusted | None, str]:
    """Return what reads texts in *tokenizer*'s place, or None, and why nothing does.

    choice: "auto" takes what there is; "huggingface" nothing; "fast" insists.
    spellings: what special and added tokens spell, whether *tokenizer* looks for them or not.

    Equal tokenizers share one, its caches and its end. Raises MissingDependencyError and
    ConfigError where "fast" cannot be had.
    """
    if choice == "huggingface":
        return None, ""
    if find_spec(LIBRARY) is None:
        if choice == "fast":
            raise MissingDependencyError(LIBRARY, EXTRA)
        return None, ""
    found, reason = _found(tokenizer, sorted(spellings))
    if reason and choice == "fast":
        raise ConfigError(
            'tokenizer "fast" must read texts as this model\'s own tokenizer does: got '
            f'{reason}; pass tokenizer="auto" or "huggingface"'
        )
    return found, reason


def _found(tokenizer: Tokenizer, spellings: list[str]) -> tuple[Trusted | None, str]:
    try:
        from . import nanotoken

        nanotoken.check(tokenizer)
        content = tokenizer.to_str()
        key = hashlib.sha256(repr((content, spellings)).encode("utf-8", "replace")).hexdigest()
        with _LOCK:
            trusted = _SHARED.get(key)
            if trusted is None:
                trusted = Trusted(tokenizer, nanotoken.Nanotoken(content), spellings)
                _SHARED[key] = trusted
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  # a panic in Rust is no Exception
        return None, f"{LIBRARY} cannot: {type(error).__name__}: {error}"
    return (None if trusted.reason else trusted), trusted.reason
