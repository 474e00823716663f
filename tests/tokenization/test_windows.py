"""Windows: exact characters of the document, never too long, cut where people would cut."""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rerank_adapters.tokenization import Cursor, PairTokenizer
from rerank_adapters.tokenization.windows import Span
from tests.checkpoints import build

KINDS = ("bert", "roberta", "xlm_roberta", "modernbert", "qwen3")
FAMILY = "👩\u200d👩\u200d👧\u200d👦"
MIXED = "".join(
    [
        "The tower is 70 m tall. It is red! " * 9,
        "日本語の文章です。東京は大きい。" * 9,
        f"\r\ncafe\u0301 {FAMILY} 👍🏽\r\n\r\n" * 9,
        "x" * 300,
        "\u3000\t end",
    ]
)

words = st.sampled_from(
    ["tower", "70", "a", "日本", "。", "cafe\u0301", FAMILY, "👍🏽", "x" * 40, "end. ", "\r\n"]
)
blanks = st.sampled_from(["", " ", "\n\n", "\u3000", "\r\n"])
texts = st.lists(st.tuples(words, blanks), min_size=1, max_size=40).map(
    lambda parts: "".join(word + blank for word, blank in parts)
)


@functools.cache
def tokenizer(kind: str) -> PairTokenizer:
    return PairTokenizer.from_folder(build(kind))


@functools.cache
def library(kind: str) -> Tokenizer:
    """The checkpoint's tokenizer.json by `tokenizers` itself, which cuts nothing."""
    made = Tokenizer.from_file(str(build(kind) / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    return made


def spans_of(kind: str, text: str, limit: int, stride: int | None = None) -> list[Span]:
    cursor, cutter = Cursor(text, 0, len(text), limit, stride or limit), tokenizer(kind).cutter()
    spans = []
    while not cursor.ended:
        (span,) = cutter.advance([cursor])
        spans.append(span)
    return spans


def pieces(kind: str, text: str, limit: int, stride: int | None = None) -> list[str]:
    return [text[it.start : it.end] for it in spans_of(kind, text, limit, stride)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=texts, limit=st.integers(4, 40), share=st.integers(1, 4))
@example(text=MIXED, limit=32, share=2)
def test_windows_cover_the_text_in_order_and_fit(kind: str, text: str, limit: int, share: int):
    """Every character that is no blank is in a window; each window fits, by the library's count."""
    stride = max(1, limit * share // 4)
    spans = spans_of(kind, text, limit, stride)
    covered = np.zeros(len(text), np.bool_)
    for span in spans:
        assert 0 <= span.start < span.end <= len(text)
        covered[span.start : span.end] = True
        piece = text[span.start : span.end]
        assert piece == piece.strip()
        count = len(library(kind).encode(piece, add_special_tokens=False))
        one_character = len(piece.replace("\u200d", "").encode()) <= 32
        assert count <= limit or one_character, (piece, count)
    assert all(covered[at] or text[at].isspace() for at in range(len(text)))
    assert [it.start for it in spans] == sorted({it.start for it in spans})


def test_sentences_then_words_stay_whole():
    """A window ends with a sentence in its last quarter, else with a word."""
    found = pieces("modernbert", "The tower is tall. It is very red. " * 6, 16)
    assert all(piece.endswith(".") for piece in found)
    long = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu " * 3
    for piece in pieces("roberta", long, 12):
        assert set(piece.split()) <= set(long.split())


def test_a_word_is_cut_only_where_it_alone_exceeds_a_window():
    """A word that fits moves to the next window, however early it begins; another is cut."""
    kind = "roberta"
    count = tokenizer(kind).count
    (size,) = count(["x" * 24])
    text = f"a {'x' * 24} b"
    assert "x" * 24 in pieces(kind, text, size)
    assert "x" * 24 not in pieces(kind, text, size - 1)


def test_no_character_as_people_see_it_is_cut():
    """Combining marks, ZWJ sequences and skin tones stay with what they belong to."""
    text = f"e\u0301{FAMILY}👍🏽" * 30
    for kind in KINDS:
        (most,) = tokenizer(kind).count([FAMILY])
        for piece in pieces(kind, text, most + 8):
            assert piece[0] in ("e", FAMILY[0], "👍"), (kind, piece)


def test_crlf_and_wide_blanks_are_between_windows():
    """Spans are of the text as it is, its line ends among them."""
    text = "One line.\r\n\r\nAnother line.\u3000\u3000A third line.\r\n"
    found = pieces("bert", text, 14)
    assert found[0].startswith("One line.")
    assert all(piece in text for piece in found)
    assert "\r\n\r\n" not in {piece[-4:] for piece in found}


@pytest.mark.parametrize("kind", KINDS)
def test_side_by_side_is_one_by_one(kind: str):
    """Several texts cut together have the windows each has alone."""
    cutter = tokenizer(kind).cutter()
    several = [MIXED, "short", "The tower is 70 m tall. " * 40]
    cursors = [Cursor(text, 0, len(text), 24, 12) for text in several]
    found: list[list[Span]] = [[] for _ in cursors]
    while waiting := [at for at, cursor in enumerate(cursors) if not cursor.ended]:
        for at, span in zip(waiting, cutter.advance([cursors[at] for at in waiting]), strict=True):
            found[at].append(span)
    assert found == [spans_of(kind, text, 24, 12) for text in several]


@pytest.mark.parametrize("kind", ["bert", "xlm_roberta"])
def test_only_a_window_is_read_at_a_time(kind: str, monkeypatch):
    """Of ten million characters no more than a few windows' worth is tokenised in one call."""
    from rerank_adapters.tokenization.reader import Reader

    sizes: list[int] = []
    full = Reader.full
    monkeypatch.setattr(
        Reader, "full", lambda self, given: sizes.extend(map(len, given)) or full(self, given)
    )
    text = "The tower is 70 m tall. " * 420_000
    cursor, cutter = Cursor(text, 0, len(text), 64, 64), tokenizer(kind).cutter()
    tracemalloc.start()
    for _ in range(20):
        cutter.advance([cursor])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(sizes) <= 2 * (64 + 16) * 6
    assert peak < 1_000_000, "Python's own memory beside ten megabytes of text"


def test_room_is_what_the_query_leaves():
    """Frame, prompt and query taken off, by `tokenizers`' own count; half at least."""
    for kind in ("bert", "roberta"):
        made = PairTokenizer.from_folder(build(kind), max_length=48)
        for query in ("how tall is it?", "so " * 100):
            taken = len(library(kind).encode(query, "a")) - len(
                library(kind).encode("a", add_special_tokens=False)
            )
            frame = library(kind).num_special_tokens_to_add(is_pair=True)
            expected = max(48 - taken, (48 - frame) // 2)
            assert made.room([query]).tolist() == [expected]
