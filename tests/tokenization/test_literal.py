"""Texts as text alone: what spells a special token writes none, in any family."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from rerank_adapters.checkpoints import TextTemplate
from rerank_adapters.tokenization import PairTokenizer
from rerank_adapters.tokenization.literal import as_text, marks_of
from rerank_adapters.tokenization.probes import PROBE_TEXTS

from .folders import FRAMES, folder_of
from .test_template import template

TEMPLATES = {
    "chat": template(),
    "mark alone": TextTemplate("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "no mark between": TextTemplate("<|im_start|>user\n", "\n", "<|im_end|>\n<think>"),
    "no mark": TextTemplate("Query: ", "\nDocument: ", "\nRelevant:"),
    "spelling begun": TextTemplate("Query: <|im_", "_end|> <|im_", "\n_end|>"),
}


def plain(name: str) -> Tokenizer:
    """tokenizer.json of *name*, as `tokenizers` reads it."""
    tokenizer = Tokenizer.from_file(str(folder_of(name) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def spelled(marks: dict[int, AddedToken]) -> list[str]:
    """Every mark alone, at the ends and in the middle, twice, in capitals and in full width."""
    wide = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
    texts = []
    for word in (mark.content for mark in marks.values()):
        texts += [word, f"a{word}", f"{word} a", f"a {word} b{word}", word + word]
        texts += [word.upper(), word.lower(), word.translate(wide), f"a\n{word}\n", f" {word} "]
    return texts


def control_ids(tokenizer: Tokenizer) -> set[int]:
    """The ids no text may write: those of marks, but for the one that stands for the unknown."""
    unknown = {"[UNK]", "<unk>"}
    marks = marks_of(tokenizer).items()
    return {number for number, mark in marks if mark.content not in unknown}


@functools.cache
def encoder(name: str, special_tokens: str, frame: str = "") -> PairTokenizer:
    """The PairTokenizer of *name*, in its own frame or in one of TEMPLATES."""
    options: dict[str, Any] = {"special_tokens": special_tokens}
    if frame:
        options["template"] = TEMPLATES[frame]
    return PairTokenizer.from_folder(folder_of(name), **options).uncut()


def ids(tokenizer: PairTokenizer, pair: tuple[str, str]) -> list[int]:
    return tokenizer.encode([pair]).batch.input_ids.tolist()


@pytest.mark.parametrize("name", [*FRAMES, "reversed"])
def test_no_special_id_comes_from_a_text(name: str) -> None:
    """The pair's own special tokens are all there is, whatever query and document spell."""
    tokenizer, control = plain(name), control_ids(plain(name))
    own = [token for token in ids(encoder(name, "as_text"), ("a", "a")) if token in control]
    for text in spelled(marks_of(tokenizer)):
        for pair in (("a", text), (text, "a"), (text, text)):
            found = ids(encoder(name, "as_text"), pair)
            assert [token for token in found if token in control] == own, pair


@pytest.mark.parametrize("name", FRAMES)
def test_ordinary_texts_keep_their_ids(name: str) -> None:
    """Law 1 holds for both: where no text spells a mark the ids are those of "as_tokens"."""
    marks = marks_of(plain(name)).values()
    texts = [text for text in PROBE_TEXTS if not any(mark.content in text for mark in marks)]
    assert len(texts) > 15
    for pair in zip(texts, reversed(texts), strict=True):
        assert ids(encoder(name, "as_text"), pair) == ids(encoder(name, "as_tokens"), pair)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "gemma", "qwen"])
def test_ids_are_those_of_encode_special_tokens(name: str) -> None:
    """Where no mark is a piece of the model itself, `tokenizers`' own switch says the same."""
    literal, switched = as_text(plain(name)), plain(name)
    switched.encode_special_tokens = True
    for text in spelled(marks_of(switched)):
        wanted = switched.encode(text, add_special_tokens=False).ids
        assert literal.encode(text, add_special_tokens=False).ids == wanted


@pytest.mark.parametrize("frame", TEMPLATES)
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma", "xlm_roberta"])
def test_a_template_s_marks_are_its_own(name: str, frame: str) -> None:
    """The template's marks stay; texts write none, nor complete what stands beside them."""
    tokenizer, control = plain(name), control_ids(plain(name))
    literal = encoder(name, "as_text", frame)
    own = [token for token in ids(literal, ("a", "a")) if token in control]
    written = tokenizer.encode(TEMPLATES[frame].text("a", "a"), add_special_tokens=False).ids
    assert own == [token for token in written if token in control]
    for text in [*spelled(marks_of(tokenizer)), "start|>", "<|im", "|>"]:
        for pair in (("a", text), (text, "a"), (text, text)):
            assert [it for it in ids(literal, pair) if it in control] == own, pair


@pytest.mark.parametrize("frame", TEMPLATES)
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma"])
def test_ordinary_texts_in_a_template_keep_their_ids(name: str, frame: str) -> None:
    """No boundary between template and text moves, but where a text spells a mark."""
    marks = marks_of(plain(name)).values()
    texts = [text for text in PROBE_TEXTS if not any(mark.content in text for mark in marks)]
    for pair in zip(texts, reversed(texts), strict=True):
        expected = plain(name).encode(TEMPLATES[frame].text(*pair), add_special_tokens=False).ids
        assert ids(encoder(name, "as_text", frame), pair) == expected


@pytest.mark.parametrize("length", [60, 75, 90])
def test_a_cut_template_keeps_its_end_and_its_marks(length: int) -> None:
    """Cut texts lose their own tokens alone, as under "as_tokens"."""
    options: dict[str, Any] = {"template": template(), "max_length": length}
    pair = ("how tall is it", "It is seventy metres tall. " * 9)
    found = [
        PairTokenizer.from_folder(folder_of("qwen3"), special_tokens=kind, **options)
        for kind in ("as_text", "as_tokens")
    ]
    assert ids(found[0], pair) == ids(found[1], pair)


def test_the_default_is_text_in_a_template_and_tokens_elsewhere() -> None:
    """Where a document could speak for the model it cannot; elsewhere law 1 holds."""
    in_template = PairTokenizer.from_folder(folder_of("qwen3"), template=template())
    assert in_template.special_tokens == "as_text"
    assert PairTokenizer.from_folder(folder_of("bert")).special_tokens == "as_tokens"


def test_words_and_added_words_are_hidden_too() -> None:
    """A mark that is a word of the vocabulary, in any normalised spelling, stays a text."""
    words = {"[UNK]": 0, "a": 1, "<x>": 2, "think": 3, "<": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<x>"])
    tokenizer.add_tokens(["think", "  "])
    literal = as_text(tokenizer)
    for text in ("<x>", "\uff1cX\uff1e", "a <X> a", "think", "\uff34HINK"):
        assert not {2, 3} & set(literal.encode(text).ids)
    assert literal.encode("a < a").ids == [1, 4, 1]
    assert literal.token_to_id("  ") == tokenizer.token_to_id("  ")  # a blank is text itself


def test_counts_are_of_texts_as_they_are_read() -> None:
    """`count` follows: "[SEP]" is one token, or the four that spell it."""
    assert encoder("bert", "as_tokens").count(["[SEP]"]) == [1]
    assert encoder("bert", "as_text").count(["[SEP]"]) == [4]
