"""RerankerConfig: what it refuses, and in which words."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from rerank_adapters import ConfigError, RerankerConfig
from rerank_adapters.reranker import Reranker

REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"backend": "tensorrt"},
        'backend must be one of "auto", "onnx", "openvino", "torch": got \'tensorrt\'',
    ),
    ({"device": "gpu"}, 'device must be "auto", "cpu", "cuda", "cuda:N" or "mps": got \'gpu\''),
    ({"device": "cpu:1"}, 'device must be "auto", "cpu", "cuda", "cuda:N" or "mps": got \'cpu:1\''),
    ({"device": "cuda:"}, 'device must be "auto", "cpu", "cuda", "cuda:N" or "mps": got \'cuda:\''),
    ({"device": "cuda:٣"}, 'device must be "auto", "cpu", "cuda", "cuda:N" or "mps": got'),
    ({"device": ("cpu", None)}, 'device must be "auto", "cpu", "cuda", "cuda:N" or "mps": got'),
    ({"device": []}, "device must be a str or a non-empty sequence of them: got []"),
    ({"dtype": "fp16"}, 'dtype must be one of "auto", "float32", "float16", "bfloat16", "int8"'),
    ({"max_length": 0}, "max_length must be an int of at least 1: got 0"),
    ({"max_length": True}, "max_length must be an int of at least 1: got True"),
    ({"max_length": "2"}, "max_length must be an int of at least 1: got '2'"),
    ({"max_length": np.bool_(True)}, f"max_length must be an int of at least 1: got {np.True_!r}"),
    (
        {"max_length": np.float64(2)},
        f"max_length must be an int of at least 1: got {np.float64(2)!r}",
    ),
    ({"num_workers": 0}, "num_workers must be an int of at least 1: got 0"),
    ({"num_threads": -1}, "num_threads must be an int of at least 1: got -1"),
    ({"num_threads": 10**9}, "num_threads must be at most 1024: got 1000000000"),
    ({"num_workers": 1025}, "num_workers must be at most 1024: got 1025"),
    ({"max_batch_tokens": 1.5}, "max_batch_tokens must be an int of at least 1: got 1.5"),
    ({"max_queue_pairs": 0}, "max_queue_pairs must be an int of at least 1: got 0"),
    ({"max_queue_tokens": 0}, "max_queue_tokens must be an int of at least 1: got 0"),
    ({"query_max_tokens": 0}, "query_max_tokens must be an int of at least 1: got 0"),
    ({"when_full": "drop"}, 'when_full must be one of "block", "error": got \'drop\''),
    ({"special_tokens": "text"}, 'special_tokens must be one of "as_text", "as_tokens", or None'),
    ({"truncation": "first"}, 'truncation must be one of "longest_first", "only_second"'),
    ({"activation": "relu"}, 'activation must be one of "default", "sigmoid", "identity"'),
    ({"trust_remote_code": 1}, "trust_remote_code must be True or False: got 1"),
    ({"local_files_only": "no"}, "local_files_only must be True or False: got 'no'"),
    ({"model": " "}, "model must be a non-empty str or a Path: got ' '"),
    ({"model": None}, "model must be a non-empty str or a Path: got None"),
    ({"revision": ""}, "revision must be None or a str that is not blank: got ''"),
    ({"token": " "}, "token must be None or a str that is not blank: got ' '"),
    ({"file_name": ""}, "file_name must be None or a str that is not blank: got ''"),
    ({"revision": 3}, "revision must be a str or None: got 3"),
    ({"prompt": ["x"]}, "prompt must be a str or None: got ['x']"),
    ({"backend": "torch", "dtype": "int8"}, 'dtype "int8" needs backend "onnx"'),
    (
        {"backend": "torch", "file_name": "a.onnx"},
        'file_name names an ONNX file and needs backend "onnx" or "openvino": got',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda case: str(case)[:40])
def test_bad_values_name_the_field_the_rule_and_the_value(
    arguments: dict[str, Any], message: str
) -> None:
    """Each refusal is a ConfigError, and a ValueError, in the house's words."""
    with pytest.raises(ConfigError) as caught:
        RerankerConfig(**arguments)
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, ValueError)


def test_unknown_arguments_raise() -> None:
    """A misspelt option is never swallowed."""
    with pytest.raises(TypeError, match="batch_size"):
        RerankerConfig(batch_size=3)  # type: ignore[call-arg]  # the point of the test
    with pytest.raises(TypeError, match="batch_size"):
        Reranker.from_pretrained(batch_size=3)  # type: ignore[call-arg]  # the point of the test


def test_from_pretrained_takes_every_field_with_the_same_default() -> None:
    """The signature users read and the value the library keeps are one list."""
    fields = {field.name: field.default for field in dataclasses.fields(RerankerConfig)}
    parameters = inspect.signature(Reranker.from_pretrained).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == fields


def test_paths_and_sequences_are_kept_as_plain_values() -> None:
    """Equal configurations are equal and hash alike, however they were written."""
    one = RerankerConfig(model=Path("a/b"), device=["cpu", "cuda:1"])  # type: ignore[arg-type]  # as users write it
    two = RerankerConfig(model="a/b", device=("cpu", "cuda:1"))
    assert one == two
    assert hash(one) == hash(two)
    assert one.devices == ("cpu", "cuda:1")


def test_a_token_of_the_wrong_kind_is_not_shown():
    """Law 8 holds in errors too: the kind is named, never the value."""
    with pytest.raises(ConfigError, match="token must be a str or None: got bytes") as caught:
        RerankerConfig(token=b"hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_numpy_s_integers_are_counts() -> None:
    """Of every width and in every option that takes a number; what is kept is a plain int."""
    hints = get_type_hints(RerankerConfig)
    counts = [name for name, hint in hints.items() if int in get_args(hint)]
    assert {"label", "max_length", "num_threads", "max_queue_pairs"} <= set(counts)
    for kind in (np.int64, np.uint8, np.int32):
        config = RerankerConfig(**{name: kind(7) for name in counts}, device=kind(1))
        assert config == RerankerConfig(**dict.fromkeys(counts, 7), device="cuda:1")
        kept = {name: getattr(config, name) for name in counts}
        assert json.loads(json.dumps(kept)) == dict.fromkeys(counts, 7)
    assert RerankerConfig(device=[np.int64(0), 1]).devices == ("cuda:0", "cuda:1")
