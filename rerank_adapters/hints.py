"""What other libraries call things: one table, for every error about a name that is not ours."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from .errors import OptionError

P = ParamSpec("P")
Result = TypeVar("Result")
Class = TypeVar("Class")

Hint = Callable[[str, Sequence[str]], str]
"""What to say of an option that a call does not have, and of those that it has."""

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

VALUES = {
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "q8": "int8",
    "quint8": "int8",
    "onnxruntime": "onnx",
    "ort": "onnx",
    "pytorch": "torch",
    "pt": "torch",
    "raise": "error",
    "longest": "longest_first",
    "none": "identity",
}
"""A foreign value of an option, and what it is called here."""

RANKING_NAMES = {
    "results": "the ranking itself: iterate over it",
    "top_k": "top",
    "top_n": "top",
    "documents": "select(documents)",
    "texts": "select(documents)",
    "docs": "select(documents)",
    "to_list": "to_dicts",
    "to_dict": "to_dicts",
    "model_dump": "to_dicts",
    "ids": "indices",
    "rankings": "the ranking itself: iterate over it",
}
"""A foreign attribute of a ranking, and what it is called here."""

DOCUMENT_NAMES = {
    "text": "ranking.select(documents): indices travel, not texts",
    "document": "ranking.select(documents): indices travel, not texts",
    "page_content": "ranking.select(documents): indices travel, not texts",
    "rank": "its position: enumerate(ranking, 1)",
    "corpus_id": "index",
    "doc_id": "index",
    "id": "index",
    "relevance_score": "score",
}
"""A foreign attribute of a ranked document, and what it is called here."""

# Python 3.13 adds its own guess, among the names of the call alone.
_UNEXPECTED = re.compile(r"(.*unexpected keyword argument '(\w+)')(?:\. Did you mean '\w+'\?)?$")

ALIKE = 0.75
"""How alike, as difflib counts, a mistyped name and the right one are at least."""


def option_hint(name: str, known: Iterable[str] = ()) -> str:
    """What the option *name* is called here, as the end of a message; "" where nothing is like it.

    It may be another library's word, or one of *known*, or a word for one of these, mistyped.
    """
    if name in OPTIONS:
        return f": {name} is called {OPTIONS[name]}"
    words = {one: one for one in known}
    here = {foreign for foreign, ours in OPTIONS.items() if re.split(r"\W", ours)[0] in words}
    words |= {foreign: OPTIONS[foreign] for foreign in here}
    near = difflib.get_close_matches(name, words, 1, ALIKE)
    return f": did you mean {words[near[0]]}?" if near else ""


def foreign_document(value: object) -> str:
    """How to rank an object of another library, as the end of a message; "" if it is unknown."""
    if isinstance(value, dict):
        return (
            ": rank its text, [row[...] for row in rows], and ranking.select(rows) orders the rows"
        )
    if hasattr(value, "page_content"):
        return ": rank its page_content, or use rerank_adapters.langchain.CrossEncoderCompressor"
    if hasattr(value, "get_content") or hasattr(value, "node"):
        return ": use rerank_adapters.llama_index.CrossEncoderPostprocessor"
    return ""


def method_error(owner: object, name: str, table: dict[str, str] | None = None) -> AttributeError:
    """The error for an attribute that *owner* lacks, with the right word where it is known."""
    known = METHODS if table is None else table
    kind = type(owner).__name__
    hint = f": it is called {known[name]}" if name in known else ""
    return AttributeError(f"{kind!r} object has no attribute {name!r}{hint}")


def hinted(function: Callable[P, Result], hint: Hint = option_hint) -> Callable[P, Result]:
    """*function*, whose TypeError for an option it does not have says the right word."""
    known = tuple(inspect.signature(function).parameters)[1:]
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                return await function(*args, **kwargs)
            except TypeError as error:
                if (worded := _worded(error, hint, known)) is None:
                    raise
                raise worded from None

        return cast("Callable[P, Result]", awaited)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            if (worded := _worded(error, hint, known)) is None:
                raise
            raise worded from None

    return call


def _worded(error: TypeError, hint: Hint, known: Sequence[str]) -> OptionError | None:
    """*error* with the right word; None where it is not about an option of the call."""
    found = _UNEXPECTED.match(str(error))
    # Raised by the call, not inside it: no frame lies between.
    own = error.__traceback__ is not None and error.__traceback__.tb_next is None
    if not own or found is None:
        return None
    return OptionError(f"{found[1]}{hint(found[2], known)}")


def first_guesses(cls: type[Class]) -> type[Class]:
    """*cls*, whose public methods and constructor answer a wrong option with the right word."""
    for name, member in list(vars(cls).items()):
        if inspect.isfunction(member) and (name == "__init__" or name[0] != "_"):
            setattr(cls, name, hinted(member))
    return cls
