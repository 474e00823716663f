"""What publishers say of known rerankers, each with where it is said; None where nobody says it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

SBERT = "sbert.net/docs/cross_encoder/pretrained_models.html"
FASTEMBED = "fastembed 0.9.1, list_supported_models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One reranker, by a hub id or another library's name for it.

    hub         the repository its files lie in; "" where that is the id
    file        its ONNX file there, "" where it has none or several; more are the files beside it
    licence     by its SPDX name where it has one
    gigabytes   of that file, or else of the weights
    languages   by their ISO 639 codes, or "multilingual"
    max_length  tokens of a pair
    ndcg10      nDCG@10 on TREC DL 2019, in hundredths
    mrr10       MRR@10 on MS MARCO's development queries, in hundredths
    sources     where all of this is said
    """

    id: str
    hub: str = ""
    file: str = ""
    more: tuple[str, ...] = ()
    licence: str | None = None
    gigabytes: float | None = None
    languages: tuple[str, ...] = ()
    max_length: int | None = None
    ndcg10: float | None = None
    mrr10: float | None = None
    sources: tuple[str, ...] = ()

    @property
    def repository(self) -> str:
        """The hub id of its files."""
        return self.hub or self.id

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what nobody says is None or empty."""
        plain = (list, tuple)
        return {
            field.name: list(value) if isinstance(value, plain) else value
            for field, value in zip(fields(self), asdict(self).values(), strict=True)
        }


def _marco(name: str, ndcg10: float, mrr10: float) -> Published:
    """One of sentence-transformers' own, of which its documentation has a table."""
    return Published(
        id=f"cross-encoder/ms-marco-{name}",
        licence="apache-2.0",
        languages=("en",),
        max_length=512,
        ndcg10=ndcg10,
        mrr10=mrr10,
        sources=(SBERT, f"huggingface.co/cross-encoder/ms-marco-{name}"),
    )


def _carded(id: str, licence: str | None = None, **facts: Any) -> Published:  # noqa: A002
    """One of which its card, or its publisher's page, says what there is."""
    return Published(id=id, licence=licence, sources=(f"huggingface.co/{id}",), **facts)


FASTEMBED_MODELS = (
    Published(
        id="Xenova/ms-marco-MiniLM-L-6-v2",
        file="onnx/model.onnx",
        licence="apache-2.0",
        gigabytes=0.08,
        languages=("en",),
        max_length=512,
        sources=(FASTEMBED, "huggingface.co/cross-encoder/ms-marco-MiniLM-L6-v2"),
    ),
    Published(
        id="Xenova/ms-marco-MiniLM-L-12-v2",
        file="onnx/model.onnx",
        licence="apache-2.0",
        gigabytes=0.12,
        languages=("en",),
        max_length=512,
        sources=(FASTEMBED, "huggingface.co/cross-encoder/ms-marco-MiniLM-L12-v2"),
    ),
    Published(
        id="BAAI/bge-reranker-base",
        file="onnx/model.onnx",
        licence="mit",
        gigabytes=1.04,
        sources=(FASTEMBED,),
    ),
    Published(
        id="BAAI/bge-reranker-v2-m3",
        hub="onnx-community/bge-reranker-v2-m3-ONNX",
        file="onnx/model.onnx",
        more=("onnx/model.onnx_data",),
        licence="apache-2.0",
        gigabytes=2.27,
        languages=("multilingual",),
        sources=(FASTEMBED, "huggingface.co/BAAI/bge-reranker-v2-m3"),
    ),
    Published(
        id="BAAI/bge-reranker-v2-m3-int8",
        hub="onnx-community/bge-reranker-v2-m3-ONNX",
        file="onnx/model_int8.onnx",
        licence="apache-2.0",
        gigabytes=0.57,
        languages=("multilingual",),
        sources=(FASTEMBED, "huggingface.co/BAAI/bge-reranker-v2-m3"),
    ),
    Published(
        id="jinaai/jina-reranker-v1-tiny-en",
        file="onnx/model.onnx",
        licence="apache-2.0",
        gigabytes=0.13,
        languages=("en",),
        max_length=8192,
        sources=(FASTEMBED, "huggingface.co/jinaai/jina-reranker-v1-tiny-en"),
    ),
    Published(
        id="jinaai/jina-reranker-v1-turbo-en",
        file="onnx/model.onnx",
        licence="apache-2.0",
        gigabytes=0.15,
        languages=("en",),
        max_length=8192,
        sources=(FASTEMBED, "huggingface.co/jinaai/jina-reranker-v1-turbo-en"),
    ),
    Published(
        id="jinaai/jina-reranker-v2-base-multilingual",
        file="onnx/model.onnx",
        licence="cc-by-nc-4.0",
        gigabytes=1.11,
        languages=("multilingual",),
        max_length=1024,
        sources=(FASTEMBED,),
    ),
)
"""The rerankers that fastembed lists, in its order, by its names."""

PUBLISHED = (
    _marco("TinyBERT-L2-v2", 69.84, 32.56),
    _marco("MiniLM-L2-v2", 71.01, 34.85),
    _marco("MiniLM-L4-v2", 73.04, 37.70),
    _marco("MiniLM-L6-v2", 74.30, 39.01),
    _marco("MiniLM-L12-v2", 74.31, 39.02),
    _marco("electra-base", 71.99, 36.41),
    *FASTEMBED_MODELS,
    _carded("BAAI/bge-reranker-v2-gemma"),
    _carded(
        "mixedbread-ai/mxbai-rerank-base-v1",
        "apache-2.0",
        gigabytes=0.37,
        languages=("en",),
        max_length=512,
    ),
    *(
        _carded(
            f"mixedbread-ai/mxbai-rerank-{size}-v2",
            "apache-2.0",
            languages=("multilingual",),
            max_length=8192,
        )
        for size in ("base", "large")
    ),
    *(
        _carded(
            f"Qwen/Qwen3-Reranker-{size}",
            "apache-2.0",
            languages=("multilingual",),
            max_length=32768,
        )
        for size in ("0.6B", "4B", "8B")
    ),
    *(_carded(f"tomaarsen/Qwen3-Reranker-{size}-seq-cls") for size in ("0.6B", "4B", "8B")),
    _carded("zeroentropy/zerank-1", languages=("en",)),  # its card and its discussions differ
    _carded("zeroentropy/zerank-1-small", "apache-2.0", max_length=32768),
    _carded("zeroentropy/zerank-1-reranker"),
    _carded("zeroentropy/zerank-1-small-reranker", "apache-2.0", max_length=32768),
    _carded("nvidia/llama-nemotron-rerank-1b-v2"),
)
