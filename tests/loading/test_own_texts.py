"""A checkpoint that writes its own texts: what only our tokenizer holds is refused, not dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_adapters import ConfigError, Reranker
from tests.checkpoints import PAIRS, build, oracle
from tests.replicas import shouting

SOME = PAIRS[:6]
OPTIONS: dict[str, Any] = {"backend": "torch", "device": "cpu", "trust_remote_code": True}


def test_a_chat_that_is_written_elsewhere_does_not_keep_its_default(tmp_path: Path) -> None:
    """By default a text in a chat is text alone: where its own code reads it, that is refused."""
    folder = shouting("qwen3", tmp_path / "model")
    said = r"special_tokens must be 'as_tokens'.*got None.*pass special_tokens=\"as_tokens\""
    with pytest.raises(ConfigError, match=said):
        Reranker(str(folder), **OPTIONS)
    loud = [(query, document.upper()) for query, document in SOME]
    with Reranker(str(folder), **OPTIONS, special_tokens="as_tokens") as reranker:
        scores = reranker.score_pairs(SOME)
    np.testing.assert_allclose(scores, oracle(build("qwen3"), loud), rtol=0, atol=1e-4)


def test_a_pair_that_is_written_elsewhere_keeps_its_tokens(tmp_path: Path) -> None:
    """Outside chats tokens are the default, which holds; text alone is refused where asked for."""
    folder = shouting("modular_bert", tmp_path / "model")
    loud = [(query, document.upper()) for query, document in SOME]
    with Reranker(str(folder), **OPTIONS) as reranker:
        scores = reranker.score_pairs(SOME)
    np.testing.assert_allclose(scores, oracle(build("modular_bert"), loud), rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match=r"must be 'as_tokens'.*got 'as_text'"):
        Reranker(str(folder), **OPTIONS, special_tokens="as_text")
