"""Vespa's own functions for a cross-encoder's inputs, as its rank expressions compute them.

An argument is a row of token ids without special tokens; it ends at its zeros, for its length is
its count of ids above 0. What does not fit is not there: the end of the last argument, and with it
the last separator. Source: vespa, config-model, expressiontransforms/TokenTransformer.java and
RankingExpressionWithTransformerTokensTestCase.java.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

BERT_CLS, BERT_SEP = 101, 102
"""What `token_input_ids` writes, whatever the vocabulary."""


def token_input_ids(length: int, *arguments: ArrayLike) -> NDArray[np.float32]:
    """Return `tokenInputIds(length, ...)`: float32 of shape (1, length), by BERT's ids.

    >>> token_input_ids(12, [1, 2], [3, 4, 5], [6, 7]).astype(int).tolist()
    [[101, 1, 2, 102, 3, 4, 5, 102, 6, 7, 102, 0]]
    """
    return custom_token_input_ids(BERT_CLS, BERT_SEP, length, *arguments)


def custom_token_input_ids(
    cls: int, sep: int, length: int, *arguments: ArrayLike
) -> NDArray[np.float32]:
    """Return `customTokenInputIds(cls, sep, length, ...)`: float32 of shape (1, length).

    An argument without ids leaves two separators next to each other, as RoBERTa's pairs have them.
    """
    ids = [cls]
    for part in _parts(length, arguments):
        ids += [*part, sep]
    return _row(ids, length)


def token_type_ids(length: int, *arguments: ArrayLike) -> NDArray[np.float32]:
    """Return `tokenTypeIds(length, ...)`: 0 to the first separator, then 1 to the last, then 0."""
    sizes = [len(part) + 1 for part in _parts(length, arguments)]
    return _row([0] * (1 + sizes[0]) + [1] * sum(sizes[1:]), length)


def token_attention_mask(length: int, *arguments: ArrayLike) -> NDArray[np.float32]:
    """Return `tokenAttentionMask(length, ...)`: 1 to the last separator, then 0."""
    return _row([1] * (1 + sum(len(part) + 1 for part in _parts(length, arguments))), length)


def _parts(length: int, arguments: Sequence[ArrayLike]) -> list[list[int]]:
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise InputError(f"length must be an int of at least 1: got {length!r:.80}")
    if len(arguments) < 2:
        raise InputError(f"arguments must be two rows of ids at least: got {len(arguments)}")
    rows = [np.asarray(argument).reshape(-1) for argument in arguments]
    return [row[: int((row > 0).sum())].astype(int).tolist() for row in rows]


def _row(values: Sequence[int], length: int) -> NDArray[np.float32]:
    row = np.zeros((1, length), np.float32)
    row[0, : len(values)] = values[:length]
    return row
