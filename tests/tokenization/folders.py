"""Tokenizer folders beside those of tests/checkpoints.py, and transformers' answer for each."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GemmaTokenizer, LlamaTokenizer, Qwen2Tokenizer

from rerank_adapters.tokenization import EncodedPairs, PairTokenizer
from tests import checkpoints

Pairs = Sequence[tuple[str, str]]
Arrays = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _sentencepiece_bpe() -> dict[str, Any]:
    """A byte-fallback BPE over text whose blanks are "▁", as Gemma's and Llama's are."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    special = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    lines = [line.replace(" ", "▁") for line in checkpoints.TRAINING_TEXT.splitlines()]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def _save(folder: Path, tokenizer: Any, model_type: str) -> None:
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def _gemma(folder: Path) -> None:
    _save(folder, GemmaTokenizer(**_sentencepiece_bpe()), "gemma")


def _llama(folder: Path) -> None:
    _save(folder, LlamaTokenizer(**_sentencepiece_bpe()), "llama")


def _bos(folder: Path) -> None:
    """Gemma's tokens in the frame Gemma's own files have: a bos before each text."""
    _save(folder, GemmaTokenizer(**_sentencepiece_bpe()), "gemma")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos>:0 $A:0", pair="<bos>:0 $A:0 <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _qwen(folder: Path) -> None:
    """No frame at all: the two texts run into each other."""
    vocab, merges = _byte_level(["<|endoftext|>"])
    _save(folder, Qwen2Tokenizer(vocab=vocab, merges=merges), "qwen2")


def _byte_level(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(checkpoints.TRAINING_TEXT.splitlines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _left(folder: Path) -> None:
    """BERT, cut at the beginning of each text."""
    _edit(checkpoints.build("bert"), folder, {"truncation_side": "left"})


def _qwen3_left(folder: Path) -> None:
    """The causal reranker, cut at the beginning of its text."""
    _edit(checkpoints.build("qwen3"), folder, {"truncation_side": "left"})


def _reversed(folder: Path) -> None:
    """A frame that writes the document before the query."""
    _edit(checkpoints.build("bert"), folder, {})
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"]["pair"] = [
        content["post_processor"]["pair"][index] for index in (0, 3, 2, 1, 4)
    ]
    file.write_text(json.dumps(content))


def _reversed_left(folder: Path) -> None:
    """The same, cut at the beginning of each text."""
    _edit(folder_of("reversed"), folder, {"truncation_side": "left"})


def _edit(source: Path, folder: Path, settings: dict[str, Any]) -> None:
    shutil.copytree(
        source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
    )
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


_EXTRA: dict[str, Callable[[Path], None]] = {
    "gemma": _gemma,
    "llama": _llama,
    "bos": _bos,
    "qwen": _qwen,
    "left": _left,
    "qwen3_left": _qwen3_left,
    "reversed": _reversed,
    "reversed_left": _reversed_left,
}
FRAMES = (
    *("bert", "roberta", "xlm_roberta", "modernbert", "deberta_v2", "mpnet", "distilbert"),
    *("gemma", "llama", "bos", "qwen", "left"),
)
"""Every tokenizer whose pairs are put together in id space."""


@functools.cache
def folder_of(name: str) -> Path:
    """The folder of a checkpoint of tests/checkpoints.py, or of one of the above."""
    if name not in _EXTRA:
        return checkpoints.build(name)
    folder = Path(tempfile.mkdtemp(prefix=f"tokenizer-{name}-"))
    _EXTRA[name](folder)
    return folder


@functools.cache
def tokenizer_of(name: str, **options: Any) -> PairTokenizer:
    """PairTokenizer.from_folder of it."""
    return PairTokenizer.from_folder(folder_of(name), **options)


@functools.cache
def reference(name: str) -> Any:
    """The tokenizer transformers makes of it."""
    tokenizer = AutoTokenizer.from_pretrained(folder_of(name))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def theirs(name: str, pairs: Pairs, max_length: int, truncation: str = "longest_first") -> Arrays:
    """(ids, mask, type ids) by transformers; zeros where it hands the model no type ids."""
    encoded = reference(name)(
        list(pairs),
        truncation=truncation,
        max_length=max_length,
        padding=True,
        padding_side="right",
        return_tensors="np",
    )
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    return ids, mask, encoded.get("token_type_ids", np.zeros_like(ids))


def by_hand(name: str, pair: tuple[str, str], max_length: int) -> list[int]:
    """The pair's ids from texts read whole and cut by the rule of longest_first.

    transformers' own cut also builds every window it drops, (windows of one text) x (windows of the
    other): two long texts and a low limit take all memory.
    """
    tokenizer = reference(name)
    ids = [
        tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"] for text in pair
    ]
    frame = tokenizer("a b", "c d")["input_ids"]
    marks = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a b", "c d")]
    room = max_length - (len(frame) - len(marks[0]) - len(marks[1]))
    kept = [len(ids[0]), len(ids[1])]
    if sum(kept) > room:
        shorter = min(kept)
        small = shorter if 2 * shorter <= room else room // 2
        kept = [room - small, small] if kept[0] > kept[1] else [small, room - small]
    left = tokenizer.truncation_side == "left"
    parts = [
        row[len(row) - many :] if left else row[:many] for row, many in zip(ids, kept, strict=True)
    ]
    first = _find(frame, marks[0], 0)
    second = _find(frame, marks[1], first + len(marks[0]))
    before, between = frame[:first], frame[first + len(marks[0]) : second]
    return [*before, *parts[0], *between, *parts[1], *frame[second + len(marks[1]) :]]


def _find(ids: list[int], part: list[int], start: int) -> int:
    return next(at for at in range(start, len(ids)) if ids[at : at + len(part)] == part)


def assert_same(encoded: EncodedPairs, expected: Arrays, pad_id: int) -> None:
    """Bit-equal ids, masks and type ids; pads count for nothing but their index."""
    ids, mask, types = encoded.batch.padded(pad_id, "right")
    np.testing.assert_array_equal(mask, expected[1])
    np.testing.assert_array_equal(ids * mask, expected[0] * mask)
    np.testing.assert_array_equal(types * mask, expected[2] * mask)
