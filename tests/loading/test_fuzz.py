"""Damage ends in our errors: seeded, each damaged checkpoint in a child with 1 GB at most.

Structure is JSON, headers and the graph, payload the weights' bytes. Either way a child says
ModelError or gives finite scores; what changes a number that a file may state changes scores, so
that those are counted, not forbidden.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from rerank_adapters import ModelError, Reranker
from rerank_adapters.checkpoints import Checkpoint, as_model_error
from rerank_adapters.protocols import RerankRequest
from rerank_adapters.tokenization import PairTokenizer
from tests.checkpoints import build
from tests.exported import exported
from tests.fuzz import run


def fuzz(backend: str, seeds: range) -> None:
    ended = run(exported("bert") if backend == "onnx" else build("bert"), backend, seeds)
    assert [told for told in ended if told.startswith("BAD")] == []
    assert ended["refused as ModelError"] > len(seeds) / 4  # the damage is real
    assert ended["scored as before"] > 0
    assert set(ended) <= {"refused as ModelError", "scored as before", "scored otherwise"}


def test_damage_ends_in_our_errors() -> None:
    """A sample of what the long test tries."""
    fuzz("onnx", range(60))


@pytest.mark.long("fuzz", sampled=False)
@pytest.mark.parametrize(("backend", "seeds"), [("onnx", 1700), ("torch", 300)])
def test_two_thousand_damages_end_in_our_errors(backend: str, seeds: int) -> None:
    """No other exception, no hang, no more than 1 GB."""
    fuzz(backend, range(1000, 1000 + seeds))


@pytest.mark.parametrize(
    "normalizer",
    [
        [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
        [{"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000}] * 4,
        [{"type": "Prepend", "prepend": "x" * 200}] * 30,
    ],
    ids=["doubling", "between letters", "before"],
)
def test_a_normalizer_that_eats_memory_is_refused(tmp_path: Path, normalizer: list[object]) -> None:
    """Forty lines of tokenizer.json would make a letter a terabyte; they are never run."""
    folder = Path(shutil.copytree(build("bert"), tmp_path / "model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Sequence", "normalizers": normalizer}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="normalizer that may write"):
        PairTokenizer.from_checkpoint(Checkpoint.read(folder))


class PanicException(BaseException):
    """As pyo3 has it: no Exception."""


@pytest.mark.parametrize(
    "raised", [OverflowError("x"), RecursionError("x"), MemoryError("x"), PanicException("x")]
)
def test_whatever_a_reader_raises_is_a_model_error(raised: BaseException) -> None:
    """With what it was, and what was read."""
    said = f"a file cannot be read: {type(raised).__name__}: x"
    with pytest.raises(ModelError, match=said), as_model_error("a file"):
        raise raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(1), ModelError("own")])
def test_what_is_no_damage_passes(raised: BaseException) -> None:
    """Ctrl-C, an exit, an error that says more."""
    with pytest.raises(type(raised)) as caught, as_model_error("a file"):
        raise raised
    assert caught.value is raised


def test_json_too_deep_is_a_model_error(tmp_path: Path) -> None:
    """Python's parser would end in a RecursionError."""
    folder = Path(shutil.copytree(build("bert"), tmp_path / "model"))
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(ModelError, match=r"config\.json"):
        Checkpoint.read(folder)


def test_a_pattern_that_backtracks_ends_in_our_error(tmp_path: Path) -> None:
    """`tokenizers` panics, which is no Exception: the call fails, others do not, nothing hangs."""
    folder = Path(shutil.copytree(exported("bert"), tmp_path / "model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(z|zz)+$y"},
        "behavior": "Isolated",
        "invert": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    requests = [RerankRequest("what barks?", [text]) for text in ("a dog", "z" * 4000, "rain")]
    with Reranker(folder, backend="onnx") as reranker:
        with pytest.raises(ModelError, match=r"one of the texts.*retry-limit"):
            reranker.score("what barks?", ["z" * 4000])
        with pytest.raises(ModelError, match=r"one of the texts.*retry-limit"):
            asyncio.run(reranker.ascore("what barks?", ["z" * 4000]))
        first, failed, last = reranker.rerank_many(requests, return_exceptions=True)
        assert isinstance(failed, ModelError)
        for ranking, text in ((first, "a dog"), (last, "rain")):
            assert ranking.scores == reranker.score("what barks?", [text]).tolist()


@pytest.mark.parametrize("junk", [2**31, "BertModel", {"a": 1}, [1], [["BertModel"]]])
def test_architectures_that_are_no_names_are_refused(tmp_path: Path, junk: object) -> None:
    """By the file and the key."""
    folder = Path(shutil.copytree(exported("bert"), tmp_path / "model"))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "architectures": junk}))
    with pytest.raises(ModelError, match=r"architectures in .*config\.json must be a list"):
        Reranker(folder, backend="onnx")
