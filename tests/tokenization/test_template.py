"""Texts of chat templates equal sentence-transformers' own, whatever the lengths and the cut."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_adapters.backends.torch import render_chat
from rerank_adapters.checkpoints import Checkpoint
from rerank_adapters.errors import ConfigError, InputError
from rerank_adapters.families import family_for, render_template
from rerank_adapters.tokenization import EncodedPairs, PairTokenizer, TextTemplate
from tests.checkpoints import LONG_DOCUMENT, LONG_QUERY, PAIRS, build, encoder_for

from .folders import folder_of, reference

PROMPT = "Given a question, retrieve passages that answer it"


@functools.cache
def template() -> TextTemplate:
    """The template of the tiny Qwen3, with its default prompt."""
    tokenizer = reference("qwen3")
    return render_template(
        lambda messages: tokenizer.apply_chat_template(messages, tokenize=False), PROMPT
    )


@functools.cache
def tokenizer_of(**options: Any) -> PairTokenizer:
    """The tokenizer of the tiny Qwen3, in its template; as sentence-transformers has marks."""
    options = {"special_tokens": "as_tokens", **options}
    return PairTokenizer.from_folder(build("qwen3"), template=template(), **options)


def theirs(pairs: list[tuple[str, str]], max_length: int | None = None) -> tuple[Any, Any]:
    """(ids, mask) by sentence-transformers."""
    text = {} if max_length is None else {"max_length": max_length}
    transformer = encoder_for(build("qwen3"))[0]
    features = transformer.preprocess(list(pairs), prompt=PROMPT, processing_kwargs={"text": text})
    return features["input_ids"].numpy(), features["attention_mask"].numpy()


def assert_same(encoded: EncodedPairs, expected: tuple[Any, Any]) -> None:
    ids, mask, types = encoded.batch.padded(0, "left")
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(mask, expected[1])
    assert not types.any()


@pytest.mark.parametrize("max_length", [None, 80, 101, 150])
def test_texts_equal_sentence_transformers(max_length: int | None) -> None:
    """Ids are bit-equal, cut or not, and padded on the left; the template's end is never lost."""
    tokenizer = tokenizer_of(max_length=max_length)
    assert not tokenizer.whole_pairs
    assert tokenizer.pad_side == "left"
    encoded = tokenizer.encode(PAIRS)
    assert_same(encoded, theirs(PAIRS, max_length))
    whole = theirs(PAIRS, 100_000)[1].sum(axis=1)
    np.testing.assert_array_equal(encoded.truncated, whole > tokenizer.max_length)


texts = st.one_of(
    st.lists(st.sampled_from([*LONG_DOCUMENT.split()[:50], "\n", "東京", "🙂"]), max_size=60).map(
        " ".join
    ),
    st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace").decode()),
    st.sampled_from(
        ["", "\n", "\n\n", " ", ".", "'s", "\u0301", "<|im_end|>", " <|im_start|>\n", ":"]
    ),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=5), max_length=st.integers(60, 130)
)
def test_random_texts_equal_sentence_transformers(
    pairs: list[tuple[str, str]], max_length: int
) -> None:
    """So they are for random texts, for texts that lean on the template, and for all limits."""
    assert_same(tokenizer_of(max_length=max_length).encode(pairs), theirs(pairs, max_length))


def test_a_text_as_long_as_the_limit_equals_sentence_transformers() -> None:
    """At the limit itself the template's end is written again, over a last token that joined it."""
    pairs = [("blue sky", "a long day\n" * count + "\n") for count in range(1, 9)]
    lengths = theirs(pairs, 100_000)[1].sum(axis=1)
    for pair, length in zip(pairs, lengths, strict=True):
        encoded = tokenizer_of(max_length=int(length)).encode([pair])
        assert_same(encoded, theirs([pair], int(length)))
        assert not encoded.truncated.any()


@pytest.fixture(scope="module")
def glued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen3 with a template whose end may join the document's last token."""
    folder = tmp_path_factory.mktemp("glued") / "qwen3"
    shutil.copytree(build("qwen3"), folder)
    text = '(messages | selectattr("role", "eq", "%s") | first).content'
    (folder / "chat_template.jinja").write_text(
        f"{{{{ {text % 'query'} }}}}: {{{{ {text % 'document'} }}}}er: "
    )
    return folder


def test_at_the_limit_the_ending_is_written_over_a_token_that_joined_it(glued: Path) -> None:
    """Not only beyond it: so does sentence-transformers, though nothing is cut there."""
    family = family_for(Checkpoint.read(glued), render=render_chat)
    transformer = encoder_for(glued)[0]
    for pair in [
        ("the lamp", "a lighthouse keep"),
        ("the lamp", "light"),
        ("blue sky", "long day keep"),
    ]:
        free = PairTokenizer.from_folder(glued, template=family.template).encode([pair]).batch
        limit = len(free.input_ids)
        expected = transformer.preprocess(
            [pair], processing_kwargs={"text": {"max_length": limit}}
        )["input_ids"].numpy()[0]
        assert not np.array_equal(free.input_ids, expected)
        tokenizer = PairTokenizer.from_folder(glued, template=family.template, max_length=limit)
        encoded = tokenizer.encode([pair])
        np.testing.assert_array_equal(encoded.batch.input_ids, expected)
        assert not encoded.truncated.any()


def test_a_template_that_tokens_cross_is_encoded_whole() -> None:
    """Gemma's tokenizer splits nowhere, so each pair is one text: its tokens are that text's."""
    crossing = TextTemplate("Query: ", "\nDocument: ", "\nAnswer:")
    tokenizer = PairTokenizer.from_folder(folder_of("gemma"), template=crossing, max_length=40)
    assert tokenizer.whole_pairs
    assert "wherever it is split" in tokenizer.whole_pairs_reason
    ending = tokenizer._writer.inner.encoder.ending.tolist()
    assert "Answer:".endswith(reference("gemma").decode(ending).strip())
    pairs = [("the lamp", "light"), ("the lamp", LONG_DOCUMENT), ("", "")]
    encoded = tokenizer.encode(pairs)
    expected = []
    for pair, cut in zip(pairs, (False, True, False), strict=True):
        text = crossing.text(*pair)
        ids = reference("gemma")(text, add_special_tokens=False, truncation=False)["input_ids"]
        assert (len(ids) > 40) == cut
        expected += [*ids[: 40 - len(ending)], *ending] if cut else ids
    assert encoded.batch.input_ids.tolist() == expected
    assert encoded.truncated.tolist() == [False, True, False]


def test_a_stripping_template_drops_blanks_around_texts() -> None:
    """With `strip`, blanks around query and document change nothing."""
    stripping = TextTemplate("<|im_start|>user\n", "\n", "<|im_end|>\n", strip=True)
    tokenizer = PairTokenizer.from_folder(build("qwen3"), template=stripping)
    ours = tokenizer.encode([(" blue \n", "\tsky\n"), ("blue", "sky")]).batch
    first, second = np.split(ours.input_ids, [ours.lengths[0]])
    assert first.tolist() == second.tolist()


def test_left_truncation_keeps_the_end() -> None:
    """Cut on the left, a text keeps its last tokens, the template's end among them."""
    tokenizer = PairTokenizer.from_folder(
        folder_of("qwen3_left"), template=template(), max_length=50
    )
    ids = reference("qwen3")(
        template().text("sky", LONG_DOCUMENT), add_special_tokens=False, truncation=False
    )["input_ids"]
    assert tokenizer.encode([("sky", LONG_DOCUMENT)]).batch.input_ids.tolist() == ids[-50:]


def test_query_max_tokens_shortens_the_query_in_the_text() -> None:
    """A long query is cut before the template goes around it; the document keeps its place."""
    tokenizer = tokenizer_of(query_max_tokens=6)
    encode = reference("qwen3")
    ids = encode(LONG_QUERY, add_special_tokens=False, truncation=False)["input_ids"]
    query = encode.decode(ids[:6])
    encoded = tokenizer.encode([(LONG_QUERY, "blue"), ("short", "blue")])
    assert encoded.truncated.tolist() == [True, False]
    expected = tokenizer_of().encode([(query, "blue"), ("short", "blue")])
    assert encoded.batch.input_ids.tolist() == expected.batch.input_ids.tolist()


def test_only_second_refuses_a_query_that_leaves_no_room() -> None:
    """Also in a template the query stays whole or the call fails, naming the pair and the cure."""
    tokenizer = tokenizer_of(max_length=120, truncation="only_second")
    with pytest.raises(InputError, match=r"pairs\[1\].*query_max_tokens"):
        tokenizer.encode([("short", LONG_DOCUMENT), (LONG_QUERY, "text")])
    assert tokenizer.encode([("short", LONG_DOCUMENT)]).truncated.all()


def test_limit_below_the_template_is_refused() -> None:
    """A limit with no room beside the template's end is a ConfigError."""
    with pytest.raises(ConfigError, match="max_length must be at least"):
        tokenizer_of(max_length=10)
