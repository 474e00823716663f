"""Long texts cost little and lose nothing; equal texts are read once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Regex, Tokenizer, models, pre_tokenizers, trainers

from rerank_adapters.tokenization import PairTokenizer
from rerank_adapters.tokenization.reader import CHARACTERS_PER_TOKEN, Reader, cut_offset
from tests.checkpoints import LONG_DOCUMENT, TRAINING_TEXT, build

from .folders import FRAMES, by_hand, folder_of, tokenizer_of

PROSE = " ".join(TRAINING_TEXT.splitlines()[:38]) + " "
CJK = "東京は日本の首都であり、世界最大の都市の一つです。光合作用把二氧化碳和水变成糖"
LONG = {
    "prose": PROSE * 40,
    "lines": PROSE.replace(" ", "\n") * 40,
    "cjk": CJK * 600,
    "no blanks": PROSE.replace(" ", "") * 40,
    "one letter": "a" * 60_000,
    "digits": "0123456789" * 5_000,
    "blanks": " " * 50_000 + "end",
    "blanks between": ("word" + " " * 900) * 60,
    "long words": ("x" * 95 + " " + "y" * 300 + " ") * 120,
    "emoji": "👩‍👩‍👧🇩🇪🙂" * 5_000,
    "marks": "e\u0301o\u0308" * 12_000,
    "one mark": "e" + "\u0301" * 40_000,
    "punctuation": "?!...--" * 7_000,
    "sentence pieces": "[SEP] </s> <mask>  " * 2_500,
    "thai": "กรุงเทพมหานครเป็นเมืองหลวง" * 1_500,
    "surrogates": ("a\ud800b " + PROSE) * 40,
    "mixed": "".join(f"{PROSE[:70]} {CJK} {number:,}\t🙂\r\n" for number in range(900)),
}


class Spy:
    """A Tokenizer that notes every text it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = []

    def encode_batch_fast(self, texts: list[str], **options: Any) -> list[Encoding]:
        self.texts += texts
        return self.tokenizer.encode_batch_fast(texts, **options)

    def encode_batch(self, texts: list[str], **options: Any) -> list[Encoding]:
        self.texts += texts
        return self.tokenizer.encode_batch(texts, **options)


@pytest.fixture(params=["bert", "roberta", "xlm_roberta", "modernbert", "deberta_v2", "mpnet"])
def watched(request: pytest.FixtureRequest) -> tuple[PairTokenizer, Spy]:
    """A PairTokenizer of up to 512 tokens, and the spy it reads with."""
    tokenizer = PairTokenizer.from_folder(
        build(request.param), max_length=512, tokenizer="huggingface"
    )
    reader: Reader = tokenizer._writer.encoder.reader
    spy = reader.tokenizer = Spy(reader.tokenizer)
    return tokenizer, spy


def test_a_million_characters_of_prose_cost_few(watched: tuple[PairTokenizer, Spy]) -> None:
    """One window is enough: the tokenizer sees the characters of one, not a million."""
    tokenizer, spy = watched
    text = (PROSE * (1_000_000 // len(PROSE) + 1))[:1_000_000]
    encoded = tokenizer.encode([("why is the sky blue", text)])
    assert encoded.truncated.all()
    assert sum(map(len, spy.texts)) < 2 * CHARACTERS_PER_TOKEN * 512


def test_each_text_is_read_once(watched: tuple[PairTokenizer, Spy]) -> None:
    """A query shared by all pairs, and documents that come twice, reach the tokenizer once."""
    tokenizer, spy = watched
    pairs = [("query", text) for text in ("one", "two", "one", "three", "two")]
    tokenizer.encode(pairs)
    assert sorted(spy.texts) == ["one", "query", "three", "two"]


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", ["bert", "roberta", "xlm_roberta", "deberta_v2", "gemma", "qwen"])
def test_a_cut_text_keeps_the_tokens_of_the_whole(name: str, text: str) -> None:
    """The tokens kept of a text read in part are the first of the text read whole."""
    reader = tokenizer_of(name)._writer.encoder.reader
    whole = np.array(reader.ids(text), dtype=np.int32)
    for limit in (1, 7, 100):
        column = reader.column([text], limit)
        assert len(column.ids) > limit or not column.cut[0]
        kept = slice(limit) if column.cut[0] else slice(None)
        np.testing.assert_array_equal(column.ids[kept], whole[kept])


pieces = st.sampled_from(
    [
        *LONG_DOCUMENT.split()[:40],
        CJK[:9],
        "🙂",
        "👩‍👩‍👧",
        "e\u0301",
        "\u0301",
        " ",
        "  ",
        "\n",
        "1234",
        ".",
        "x" * 101,
    ]
)


@pytest.mark.parametrize("name", FRAMES)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.lists(pieces, min_size=20, max_size=40), repeats=st.integers(2, 8), glue=st.booleans()
)
def test_random_long_texts_lose_nothing(
    name: str, text: list[str], repeats: int, glue: bool
) -> None:
    """Pairs of long texts have the tokens that reading them whole gives."""
    long = (" " if glue else "").join(text * repeats)
    pairs = [("lamp", long), (long[: len(long) // 2], long), (long, "lamp")]
    ours = tokenizer_of(name, max_length=21).encode(pairs).batch
    assert ours.input_ids.tolist() == [it for pair in pairs for it in by_hand(name, pair, 21)]


@pytest.mark.parametrize("name", ["bert", "roberta", "qwen"])
def test_the_odd_token_goes_to_the_longer_of_two_cut_texts(name: str) -> None:
    """Where both texts are read in part, which is longer is still known."""
    longer, shorter = PROSE * 12, PROSE * 11
    pairs = [(longer, shorter), (shorter, longer), (longer, longer)]
    for max_length in (20, 21):
        ours = tokenizer_of(name, max_length=max_length).encode(pairs).batch
        expected = [it for pair in pairs for it in by_hand(name, pair, max_length)]
        assert ours.input_ids.tolist() == expected


def test_a_cut_falls_between_words_and_never_inside_a_number() -> None:
    """In half a window: before a blank, else after what is no digit, else nowhere."""
    assert cut_offset("some words here", 6) == len("some")
    assert cut_offset("a bb " + "c" * 20, 10) == 10
    assert cut_offset("a" * 6 + "1" * 20, 10) == 6
    assert cut_offset("1" * 30, 10) == 30
    assert cut_offset(" " * 30, 10) == 30
    assert cut_offset("short", 10) == 5


def test_digits_grouped_from_the_right_are_cut_exactly() -> None:
    """A rule that looks to the end of a number, however far, sees the number whole."""
    letters = {letter: index for index, letter in enumerate(["x", " ", "1", "2", "12"])}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[("1", "2")]))
    grouped = Regex(r"\d{1,3}(?=(?:\d{3})*(?!\d))")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(grouped, "isolated")
    reader = Reader(tokenizer)
    for digits in range(900, 903):
        text = "x " * 20 + ("12" * digits)[:digits] + " x" * 900
        column = reader.column([text], 60)
        assert column.ids[:60].tolist() == reader.ids(text)[:60]


O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How GPT-4o's tokenizer, and those after it, split text."""


def test_a_cut_that_splits_the_word_before_it_is_not_settled() -> None:
    """A rule that takes letters back changes more than the last pre-token: a margin is needed.

    Cut before its last letter, ".東ABCd" is ".東" and "ABC": the pre-token before the last one, in
    which the token wanted lies, is not the whole text's.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(O200K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["library.東ABCd.東ABC " * 9], trainer)
    reader, text = Reader(tokenizer), "library" + ".東ABCd" * 5000
    assert len(reader.ids("library.東ABCd")) == 2
    assert len(reader.ids("library.東ABC")) == 3
    whole = reader.ids(text)
    for limit in range(1, 100):
        column = reader.column([text], limit)
        assert column.cut[0]
        assert column.ids[:limit].tolist() == whole[:limit]


def test_left_truncation_reads_to_the_end() -> None:
    """Cut on the left, a long document keeps its last tokens."""
    ours = tokenizer_of("left", max_length=30).encode([("lamp", PROSE * 20)]).batch
    assert ours.input_ids.tolist() == by_hand("left", ("lamp", PROSE * 20), 30)


@pytest.mark.parametrize("blanks", [0, 1])
@pytest.mark.parametrize("windows", [0.9, 1.3, 3, 5.5, 6.5, 40])
def test_a_text_without_blanks_is_hardly_read_twice(
    watched: tuple[PairTokenizer, Spy], windows: float, blanks: int
) -> None:
    """At most 1.2 times its characters reach the tokenizer, however long it is."""
    tokenizer, spy = watched
    text = (CJK * 9_999)[: int(windows * CHARACTERS_PER_TOKEN * 512)]
    text = text.replace(CJK * 30, CJK * 30 + " ") if blanks else text
    tokenizer.encode([("東京は", text)])
    assert sum(map(len, spy.texts)) <= 1.2 * len(text) + len("東京は")


def test_a_text_of_one_pretoken_is_read_once() -> None:
    """Gemma's tokenizer bounds nothing, so that no head of a text can be trusted: none is tried."""
    tokenizer = PairTokenizer.from_folder(folder_of("gemma"), max_length=64)
    reader: Reader = tokenizer._writer.encoder.reader
    spy = reader.tokenizer = Spy(reader.tokenizer)
    tokenizer.encode([("lamp", PROSE * 9)])
    assert sorted(spy.texts) == sorted([PROSE * 9, "lamp"])


def test_a_pair_encoded_whole_reads_long_texts_once() -> None:
    """Where the tokenizer's own pair encoding runs, a long text is counted and cut at once."""
    folder = folder_of("reversed")
    tokenizer = PairTokenizer.from_folder(folder, max_length=64, tokenizer="huggingface")
    assert tokenizer.whole_pairs
    reader: Reader = tokenizer._writer.encoder.reader
    spy = reader.tokenizer = Spy(reader.tokenizer)
    tokenizer.encode([("lamp", CJK * 99)])
    assert sorted(spy.texts) == sorted([CJK * 99, "lamp"])
