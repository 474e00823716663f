"""Pairs of sequences equal transformers' own, whatever the frame, the lengths and the cut."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from rerank_adapters.checkpoints import Checkpoint
from rerank_adapters.errors import ConfigError, InputError
from rerank_adapters.families import family_for
from rerank_adapters.tokenization import PairTokenizer
from rerank_adapters.tokenization.truncation import longest_first
from tests.checkpoints import LONG_DOCUMENT, PAIRS, build, encoder_for

from .folders import FRAMES, assert_same, folder_of, reference, theirs, tokenizer_of

words = st.sampled_from(
    [
        *LONG_DOCUMENT.split()[:60],
        "東京",
        "は",
        "🙂",
        "e\u0301",
        "<s>",
        "[SEP]",
        "</s>",
        "\n",
        "  ",
        "’s",
    ]
)
texts = st.one_of(
    st.lists(words, max_size=30).map(" ".join),
    st.lists(words, max_size=30).map("".join),
    st.text(max_size=40),
)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("max_length", [32, 33, 127])
def test_pairs_equal_transformers(name: str, max_length: int) -> None:
    """Ids, masks and type ids are bit-equal to transformers', cut at odd and even lengths."""
    tokenizer = tokenizer_of(name, max_length=max_length)
    assert not tokenizer.whole_pairs
    assert_same(tokenizer.encode(PAIRS), theirs(name, PAIRS, max_length), tokenizer.pad_id)


@pytest.mark.parametrize("name", FRAMES)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=6), max_length=st.integers(10, 40)
)
def test_random_pairs_equal_transformers(
    name: str, pairs: list[tuple[str, str]], max_length: int
) -> None:
    """So they are for random texts and limits."""
    pairs = [(left.encode("utf-8", "replace").decode(), right) for left, right in pairs]
    tokenizer = tokenizer_of(name, max_length=max_length)
    assert_same(tokenizer.encode(pairs), theirs(name, pairs, max_length), tokenizer.pad_id)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "bert_128", "mpnet", "deberta_v2"])
def test_features_equal_sentence_transformers(name: str) -> None:
    """With no limit asked for, the ids are those sentence-transformers feeds its model."""
    limit = family_for(Checkpoint.read(build(name))).position_limit
    tokenizer = tokenizer_of(name, position_limit=limit)
    features = encoder_for(build(name))[0].preprocess(list(PAIRS))
    ids, mask, types = tokenizer.encode(PAIRS).batch.padded(tokenizer.pad_id)
    np.testing.assert_array_equal(ids, features["input_ids"].numpy())
    np.testing.assert_array_equal(mask, features["attention_mask"].numpy())
    if "token_type_ids" in features:
        np.testing.assert_array_equal(types, features["token_type_ids"].numpy())


def test_comparison_sees_one_token_less() -> None:
    """The comparison is not blind: a limit one lower fails it, and so do type ids of zero."""
    expected = theirs("bert", PAIRS, 64)
    with pytest.raises(AssertionError):
        assert_same(tokenizer_of("bert", max_length=63).encode(PAIRS), expected, 0)
    zeroed = expected[0], expected[1], np.zeros_like(expected[2])
    with pytest.raises(AssertionError):
        assert_same(tokenizer_of("bert", max_length=64).encode(PAIRS), zeroed, 0)


def test_longest_first_is_the_rule_of_tokenizers() -> None:
    """All lengths up to 13 and limits up to 17 keep what `tokenizers` itself keeps."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for room in range(2, 18):
        tokenizer.enable_truncation(room, strategy="longest_first")
        lengths = np.array(list(itertools.product(range(14), range(14))))
        texts = [("a " * left, "b " * right) for left, right in lengths]
        ids = [np.array(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
        kept = longest_first(lengths[:, 0], lengths[:, 1], room)
        np.testing.assert_array_equal(kept[0], [(row == 0).sum() for row in ids])
        np.testing.assert_array_equal(kept[1], [(row == 1).sum() for row in ids])


@pytest.mark.parametrize("name", ["bert", "roberta", "qwen", "left"])
def test_only_second_cuts_the_document_alone(name: str) -> None:
    """truncation="only_second" equals transformers' where the query leaves room."""
    tokenizer = tokenizer_of(name, max_length=40, truncation="only_second")
    pairs = [(query, text) for query, text in PAIRS if len(query) < 25]
    assert_same(tokenizer.encode(pairs), theirs(name, pairs, 40, "only_second"), tokenizer.pad_id)


@pytest.mark.parametrize("name", ["bert", "reversed"])
def test_only_second_refuses_a_query_that_leaves_no_room(name: str) -> None:
    """The error names the pair and query_max_tokens, which then cures it."""
    pairs = [("short", LONG_DOCUMENT), (LONG_DOCUMENT, "text")]
    options = {"max_length": 20, "truncation": "only_second"}
    with pytest.raises(InputError, match=r"pairs\[1\].*query_max_tokens"):
        tokenizer_of(name, **options).encode(pairs)
    cured = tokenizer_of(name, **options, query_max_tokens=5).encode(pairs)
    text = reference("bert")("text", add_special_tokens=False)["input_ids"]
    assert cured.batch.lengths.tolist() == [20, 3 + 5 + len(text)]
    assert cured.truncated.tolist() == [True, True]


def test_query_max_tokens_keeps_the_first_tokens_of_the_query() -> None:
    """A longer query loses its end, a shorter one nothing."""
    tokenizer = tokenizer_of("bert", query_max_tokens=4)
    ids = reference("bert")(LONG_DOCUMENT, add_special_tokens=False, truncation=False)["input_ids"]
    encoded = tokenizer.encode([(LONG_DOCUMENT, "x"), ("the lamp", "x")])
    assert encoded.batch.input_ids[1:5].tolist() == ids[:4]
    assert encoded.truncated.tolist() == [True, False]


@pytest.mark.parametrize("name", FRAMES)
def test_truncated_says_who_lost_tokens(name: str) -> None:
    """A pair is truncated exactly where transformers' pair without a limit is longer."""
    tokenizer = tokenizer_of(name, max_length=33)
    whole = theirs(name, PAIRS, 10_000)[1].sum(axis=1)
    np.testing.assert_array_equal(tokenizer.encode(PAIRS).truncated, whole > 33)


@pytest.mark.parametrize("name", ["bert", "xlm_roberta"])
def test_prompt_equals_sentence_transformers(name: str) -> None:
    """A prompt stands before the query, as `CrossEncoder.predict(prompt=...)` puts it."""
    tokenizer = tokenizer_of(name, prompt="query: ")
    features = encoder_for(build(name))[0].preprocess(list(PAIRS), prompt="query: ")
    ids, mask, _ = tokenizer.encode(PAIRS).batch.padded(tokenizer.pad_id)
    np.testing.assert_array_equal(ids, features["input_ids"].numpy())
    np.testing.assert_array_equal(mask, features["attention_mask"].numpy())


def test_reversed_frame_is_encoded_whole() -> None:
    """A frame with the document first is not put together by hand, and is right all the same."""
    tokenizer = tokenizer_of("reversed", max_length=31)
    assert tokenizer.whole_pairs
    assert "no frame" in tokenizer.whole_pairs_reason
    encoded = tokenizer.encode(PAIRS)
    rust = Tokenizer.from_file(str(folder_of("reversed") / "tokenizer.json"))
    rust.enable_truncation(31)
    rust.no_padding()
    rows = rust.encode_batch(list(PAIRS))
    assert encoded.batch.input_ids.tolist() == [token for row in rows for token in row.ids]
    assert encoded.batch.type_ids.tolist() == [kind for row in rows for kind in row.type_ids]
    assert encoded.truncated.tolist() == [bool(row.overflowing) for row in rows]


@pytest.mark.parametrize("max_length", [21, 22])
@pytest.mark.parametrize("name", ["reversed", "reversed_left"])
def test_long_texts_encoded_whole_are_shortened_first(name: str, max_length: int) -> None:
    """Two long texts keep what they would, without the windows that would fill all memory."""
    longer, shorter = f"{LONG_DOCUMENT} " * 5, f"{LONG_DOCUMENT} " * 4
    tokenizer = tokenizer_of(name, max_length=max_length)
    texts = {text: tokenizer._writer.encoder.reader.ids(text) for text in (longer, shorter)}
    cls, sep = 2, 3
    for query, document in [(longer, shorter), (shorter, longer), (longer, longer)]:
        half, odd = divmod(max_length - 3, 2)
        left, right = (half + odd, half) if len(query) > len(document) else (half, half + odd)
        if name == "reversed":
            kept = texts[query][:left], texts[document][:right]
        else:
            kept = texts[query][-left:], texts[document][-right:]
        encoded = tokenizer.encode([(query, document)])
        assert encoded.batch.input_ids.tolist() == [cls, *kept[1], sep, *kept[0], sep]
        assert encoded.truncated.all()


def test_count_is_of_the_text_alone() -> None:
    """No special tokens, no cut, no template: what chunkers need."""
    ids = reference("bert")(LONG_DOCUMENT, add_special_tokens=False, truncation=False)["input_ids"]
    assert tokenizer_of("bert", max_length=9).count([LONG_DOCUMENT, ""]) == [len(ids), 0]


@pytest.mark.parametrize("name", ["bert", "roberta", "reversed"])
def test_surrogates_are_joined_or_replaced(name: str) -> None:
    """Two halves are their character, and what no encoding can write is U+FFFD."""
    tokenizer = tokenizer_of(name)
    odd = [("a \ud800 b", "c \udfff"), ("nul \x00", "\ud83d half \ud83d\ude00 emoji")]
    clean = [("a \ufffd b", "c \ufffd"), ("nul \x00", "\ufffd half \U0001f600 emoji")]
    ours, plain = tokenizer.encode(odd).batch, tokenizer.encode(clean).batch
    assert ours.input_ids.tolist() == plain.input_ids.tolist()
    assert ours.lengths.tolist() == plain.lengths.tolist()


def test_no_pairs_give_no_tokens() -> None:
    """An empty call is an empty batch, also where pairs are encoded whole."""
    for name in ("bert", "reversed"):
        encoded = tokenizer_of(name).encode([])
        assert len(encoded) == len(encoded.batch) == len(encoded.batch.input_ids) == 0


def test_limit_below_the_frame_is_refused() -> None:
    """A limit with no room for one token of each text is a ConfigError."""
    with pytest.raises(ConfigError, match="max_length must be at least 5: got 4"):
        PairTokenizer.from_folder(build("bert"), max_length=4)
    with pytest.raises(ConfigError, match="max_length must be at least 6: got 5"):
        PairTokenizer.from_folder(build("roberta"), max_length=5)
    with pytest.raises(ConfigError, match="truncation must be"):
        PairTokenizer.from_folder(build("bert"), truncation="only_first")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="query_max_tokens must be at least 1: got 0"):
        PairTokenizer.from_folder(build("bert"), query_max_tokens=0)


def test_sixteen_threads_encode_as_one_does() -> None:
    """1,600 calls of mixed limits and truncations on 16 threads equal the serial ones."""
    options = [{}, {"max_length": 16}, {"max_length": 33, "truncation": "only_second"}]
    tokenizers = [tokenizer_of("bert", **it, query_max_tokens=10) for it in options]
    calls = [
        (
            tokenizers[number % 3],
            [PAIRS[(number + step) % len(PAIRS)] for step in range(number % 5)],
        )
        for number in range(1600)
    ]
    serial = [tokenizer.encode(pairs).batch.input_ids.tolist() for tokenizer, pairs in calls]
    start = threading.Barrier(16)

    def work(part: int) -> list[list[int]]:
        start.wait()
        return [
            tokenizer.encode(pairs).batch.input_ids.tolist() for tokenizer, pairs in calls[part::16]
        ]

    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(work, range(16)))
    assert [parts[number % 16][number // 16] for number in range(1600)] == serial
