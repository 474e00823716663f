"""What other libraries call things: one table, for every error about a name that is not ours."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")

OPTIONS = {
    "model_name": "model",
    "model_name_or_path": "model",
    "model_path": "model",
    "specific_model_path": "model, which takes a folder too",
    "cross_encoder": "model, or reranker= for a ready one",
    "base_compressor": "compressor",
    "k": "top_n",
    "top_k": "top_n",
    "topk": "top_n",
    "num_results": "top_n",
    "threshold": "score_threshold",
    "min_score": "score_threshold",
    "similarity_cutoff": "score_threshold",
    "texts": "documents",
    "docs": "documents",
    "passages": "documents",
    "sentences": "pairs, in score_pairs",
    "return_documents": "ranking.select(documents), or ranking.scored(documents)",
    "batch_size": "max_batch_tokens: batches are cut by tokens",
    "max_seq_length": "max_length",
    "query_max_length": "query_max_tokens",
    "cache_dir": "cache_folder",
    "hf_token": "token",
    "use_auth_token": "token",
    "activation_fn": 'activation: "sigmoid", "identity" or "softmax"',
    "activation_fct": 'activation: "sigmoid", "identity" or "softmax"',
    "default_activation_function": 'activation: "sigmoid", "identity" or "softmax"',
    "apply_softmax": 'activation="softmax"',
    "normalize": 'activation: "sigmoid" for scores from 0 to 1, "identity" for raw ones',
    "torch_dtype": "dtype",
    "use_fp16": 'dtype="float16"',
    "quantize": 'dtype="int8"',
    "cuda": 'device="cuda"',
    "use_gpu": 'device="cuda"',
    "providers": "device",
    "device_ids": "device, which takes several",
    "parallel": "num_workers",
    "threads": "num_threads",
    "model_kwargs": "dtype, revision, trust_remote_code, each by itself",
    "tokenizer_kwargs": "max_length, truncation, each by itself",
    "tokenizer_args": "max_length, truncation, each by itself",
    "instruction": "prompt",
    "show_progress_bar": "progress, in rerank_many and rerank_iter",
    "show_progress": "progress, in rerank_many and rerank_iter",
    "lazy_load": "nothing here: adapters load at first use, or early by warm()",
    "convert_to_tensor": "nothing here: scores are a NumPy array",
    "convert_to_numpy": "nothing here: scores are a NumPy array",
}
"""A foreign option, and what it is called here."""

METHODS = {
    "rank": "rerank",
    "arank": "arerank",
    "rank_async": "arerank",
    "rank_batch": "rerank_many",
    "rerank_batch": "rerank_many",
    "rerank_pairs": "score_pairs",
    "predict": "score_pairs, or score for one query",
    "compute_score": "score_pairs, or score for one query",
    "encode": "score_pairs: a cross-encoder has no vectors",
    "invoke": "rerank",
    "batch": "rerank_many",
    "compress_documents": "rerank; for Documents rerank_adapters.langchain.CrossEncoderCompressor",
    "postprocess_nodes": "rerank; for nodes rerank_adapters.llama_index.CrossEncoderPostprocessor",
    "run": "rerank",
    "unload": "close",
    "to": "Reranker(..., device=...)",
    "max_seq_length": "max_length",
    "device": "info().device",
    "model": "info().model",
    "tokenizer": "count_tokens",
}
"""A foreign method or attribute of a reranker, and what it is called here."""

_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'$")


def option_hint(name: str) -> str:
    """What the foreign option *name* is called here, as the end of a message; "" if unknown."""
    return f": {name} is called {OPTIONS[name]}" if name in OPTIONS else ""


def method_error(owner: object, name: str, table: dict[str, str] | None = None) -> AttributeError:
    """The error for an attribute that *owner* lacks, with the right word where it is known."""
    known = METHODS if table is None else table
    kind = type(owner).__name__
    hint = f": it is called {known[name]}" if name in known else ""
    return AttributeError(f"{kind!r} object has no attribute {name!r}{hint}")


def hinted(function: Callable[P, Result]) -> Callable[P, Result]:
    """*function*, whose TypeError for a foreign option says the right word."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            found = _UNEXPECTED.search(str(error))
            # Raised by the call itself, not inside it: no frame lies between.
            own = error.__traceback__ is not None and error.__traceback__.tb_next is None
            if not own or found is None or found[1] not in OPTIONS:
                raise
            raise TypeError(f"{error}{option_hint(found[1])}") from None

    return call
