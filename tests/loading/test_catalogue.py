"""Known hub ids, from a hub on loopback to a score: each by what its card computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    GemmaTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from rerank_adapters import ModelError, Reranker
from rerank_adapters.export import export_onnx
from tests.checkpoints import PAIRS, oracle
from tests.loading.conftest import COMMIT, Hub
from tests.replicas import PLAIN_CHAT, save_decoder
from tests.tokenization.folders import _byte_level, _sentencepiece_bpe

SHORT = [pair for pair in PAIRS if len(pair[0] + pair[1]) < 160 and "<|" not in pair[1]][:5]

Ids = Callable[[str], list[int]]

JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
ANSWER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


def qwen3_row(ids: Ids, query: str, document: str) -> list[int]:
    """Qwen3-Reranker's card: the text between a prefix and a suffix, each tokenised by itself."""
    text = f"<Instruct>: {SEARCH}\n<Query>: {query}\n<Document>: {document}"
    return ids(JUDGE) + ids(text) + ids(ANSWER)


def gemma_row(ids: Ids, query: str, document: str) -> list[int]:
    """bge-reranker-v2-gemma's card: a bos, and pieces joined as tokens."""
    prompt = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the "
        "query by providing a prediction of either 'Yes' or 'No'."
    )
    return [2, *ids(f"A: {query}"), *ids("\n"), *ids(f"B: {document}"), *ids("\n"), *ids(prompt)]


def mxbai_row(ids: Ids, query: str, document: str) -> list[int]:
    """mxbai-rerank v2's own package: query, document and task joined as tokens in a chat."""
    task = (
        "You are a search relevance expert who evaluates how well documents match search queries. "
        "For each query-document pair, carefully analyze the semantic relationship between them, "
        "then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
        "Relevance:"
    )
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    before = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    parts = [f"query: {query}", "\n", f"document: {document}", "\n", task]
    pair = [token for part in parts for token in ids(part)]
    return ids(before) + pair + ids("<|im_end|>\n<|im_start|>assistant\n")


def zerank_row(ids: Ids, query: str, document: str) -> list[int]:
    """zerank-1's card: the query is the system's turn, the document the user's."""
    return ids(
        f"<|im_start|>system\n{query.strip()}<|im_end|>\n<|im_start|>user\n{document.strip()}"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def tokenizer(words: tuple[str, ...]) -> Qwen2Tokenizer:
    """Qwen's, whose vocabulary has *words*."""
    vocab, merges = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    for word in words:
        vocab.setdefault(word, len(vocab))
    marks = ["<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(vocab=vocab, merges=merges, additional_special_tokens=marks)


def gemma_tokenizer(words: tuple[str, ...]) -> GemmaTokenizer:
    """Gemma's, which writes a bos before each text, and whose vocabulary has *words*."""
    trained = _sentencepiece_bpe()
    for word in words:
        trained["vocab"].setdefault(word, len(trained["vocab"]))
    made = GemmaTokenizer(**trained)
    made._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos>:0 $A:0", pair="<bos>:0 $A:0 <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    return made


CARDS: dict[str, tuple[Any, Any, Callable[..., list[int]], tuple[str, ...], float, bool]] = {
    "Qwen/Qwen3-Reranker-0.6B": (
        Qwen3ForCausalLM,
        Qwen3Config,
        qwen3_row,
        ("yes", "no"),
        1.0,
        True,
    ),
    "BAAI/bge-reranker-v2-gemma": (GemmaForCausalLM, GemmaConfig, gemma_row, ("Yes",), 1.0, False),
    "mixedbread-ai/mxbai-rerank-base-v2": (
        Qwen2ForCausalLM,
        Qwen2Config,
        mxbai_row,
        ("1", "0"),
        1.0,
        False,
    ),
    "zeroentropy/zerank-1": (Qwen3ForCausalLM, Qwen3Config, zerank_row, ("Yes",), 0.2, True),
}
"""Hub id → class, configuration, tokens of a pair, answers, scale, and whether the score is P."""


@pytest.mark.parametrize("name", CARDS)
def test_a_known_id_scores_as_its_card_says(hub: Hub, tmp_path: Path, name: str) -> None:
    """Frame, answers and instruction come with the id alone; its folder asks for them by name."""
    model_class, config_class, row, words, scale, sigmoid = CARDS[name]
    gemma = model_class is GemmaForCausalLM
    made = gemma_tokenizer(words) if gemma else tokenizer(words)
    chat = None if gemma else PLAIN_CHAT
    folder = tmp_path / "folder"
    save_decoder(folder, model_class, config_class, made, chat=chat)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    reader = AutoTokenizer.from_pretrained(folder)

    def ids(text: str) -> list[int]:
        return list(reader(text, add_special_tokens=False).input_ids)

    answers = reader.convert_tokens_to_ids(list(words))
    with torch.no_grad():
        rows = [torch.tensor([row(ids, *pair)]) for pair in SHORT]
        logits = [model(input_ids=it).logits[0, -1] for it in rows]
    lead = [float(it[answers[0]] - (it[answers[1]] if answers[1:] else 0)) for it in logits]
    expected = torch.tensor(lead) * scale
    expected = expected.sigmoid() if sigmoid else expected

    hub.put(name, folder)
    options = {"backend": "torch", "device": "cpu", "cache_folder": str(tmp_path / "cache")}
    with Reranker(name, **options) as reranker:
        assert reranker.info().revision == COMMIT
        np.testing.assert_allclose(reranker.score_pairs(SHORT), expected, rtol=0, atol=1e-4)
    with pytest.raises(ModelError, match=rf"template=.*answers=.*resembles .*{name}"):
        Reranker(str(folder), **options)
    if gemma:  # its frame is the one whose parts are joined as tokens
        out = export_onnx(name, tmp_path / "out", cache_folder=options["cache_folder"])
        with Reranker(out, backend="onnx") as reranker:
            np.testing.assert_allclose(reranker.score_pairs(SHORT), expected, rtol=0, atol=1e-4)


def test_a_known_id_with_a_head_takes_its_frame(hub: Hub, tmp_path: Path) -> None:
    """The seq-cls form of Qwen3-Reranker: the same text, read by one label; the score is P(yes)."""
    name, folder = "tomaarsen/Qwen3-Reranker-0.6B-seq-cls", tmp_path / "folder"
    save_decoder(folder, Qwen3ForSequenceClassification, chat=None, labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    reader = AutoTokenizer.from_pretrained(folder)

    def ids(text: str) -> list[int]:
        return list(reader(text, add_special_tokens=False).input_ids)

    with torch.no_grad():
        rows = [torch.tensor([qwen3_row(ids, *pair)]) for pair in SHORT]
        expected = [float(model(input_ids=it).logits[0, 0].sigmoid()) for it in rows]
    hub.put(name, folder)
    with Reranker(
        name, backend="torch", device="cpu", cache_folder=str(tmp_path / "cache")
    ) as reranker:
        np.testing.assert_allclose(reranker.score_pairs(SHORT), expected, rtol=0, atol=1e-4)


DOCUMENT_FIRST = (
    "{%- set query = messages | selectattr('role', 'eq', 'query') | map(attribute='content')"
    " | first -%}{%- set text = messages | selectattr('role', 'eq', 'document')"
    " | map(attribute='content') | first -%}"
    "Check whether a given document contains information helpful to answer the query.\n"
    "<Document> {{ text }}\n<Query> {{ query }} ??"
)


def test_ctxl_is_what_its_own_files_say(hub: Hub, tmp_path: Path) -> None:
    """Its modules read one token's logit, its template writes the document first: no entry."""
    name, folder = "ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b", tmp_path / "folder"
    save_decoder(tmp_path / "plain", chat=DOCUMENT_FIRST)
    modules = [
        Transformer(str(tmp_path / "plain"), transformer_task="text-generation"),
        LogitScore(true_token_id=0),
    ]
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(folder))
    hub.put(name, folder)
    options = {"backend": "torch", "device": "cpu", "activation": "identity"}
    with Reranker(name, **options, cache_folder=str(tmp_path / "cache")) as reranker:
        scores = reranker.score_pairs(SHORT)
    expected = oracle(folder, SHORT, activation="identity")
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
