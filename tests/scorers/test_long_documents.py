"""Windows and paragraphs: whose score a document gets, from where, and at what cost.

The oracle is sentence-transformers over the characters that the span names.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_adapters import (
    ConfigError,
    InputError,
    Paragraphs,
    Reranker,
    RerankerConfig,
    Windows,
)
from rerank_adapters.calls import inside
from rerank_adapters.errors import BackendError
from rerank_adapters.protocols import Call, RerankRequest
from rerank_adapters.scorers.long_documents import LongDocuments, pieces
from rerank_adapters.tokenization.reader import Reader
from tests.checkpoints import build, oracle
from tests.fakes import CountingBackend, FaultyBackend, HeldBackend, reranker_over

QUERY = "how tall is the Eiffel tower?"
FILLER = "The committee met on Tuesday and discussed the budget for roads. "
ANSWER = "The Eiffel tower is 330 metres tall, measured to the tip. "
TOLERANCE = 1e-4  # law 1: float32 sums in another order


@pytest.fixture(scope="module")
def windowed():
    with Reranker(windows=Windows(128, 64)) as reranker:
        yield reranker


@pytest.fixture(scope="module")
def bare():
    with Reranker() as reranker:
        yield reranker


def long_document(reranker: Reranker) -> str:
    """The answer at token 3,000."""
    (each,) = reranker.count_tokens([FILLER])
    return FILLER * (3000 // each) + ANSWER + FILLER * 20


def test_an_answer_at_token_3000_is_found(windowed, bare):
    """It ranks first under max, its span is where it stands, and without windows it is lost."""
    document = long_document(bare)
    documents = [FILLER * 40, document, "The committee's tower of paper is tall."]
    assert bare.rerank(QUERY, documents)[0].index != 1
    best = windowed.rerank(QUERY, documents)[0]
    assert best.index == 1
    start, end = best.span
    assert start <= document.index(ANSWER)
    assert document.index(ANSWER) + len(ANSWER) - 1 <= end
    assert not best.truncated
    # The bundled model is int8, so bit for bit (law 2).
    assert best.score == bare.score(QUERY, [document[start:end]])[0]


@pytest.mark.parametrize("kind", ["bert", "bert_two_labels", "roberta", "qwen3"])
@pytest.mark.parametrize("aggregate", ["max", "first", "mean", "topk_mean"])
def test_scores_are_the_oracles_over_the_windows(kind: str, aggregate: str):
    """Max and first carry the window's logit and score; means are of logits, then activated."""
    folder = build(kind)
    document = " ".join(f"{FILLER}{ANSWER}"[at : at + 60] for at in range(0, 60, 3))
    settings = Windows(24, 12, aggregate, topk=2)
    applied = "softmax" if kind == "bert_two_labels" else "sigmoid"
    with Reranker(
        folder, backend="torch", device="cpu", activation=applied, windows=settings
    ) as reranker:
        ranking = reranker.rerank(QUERY, [document, "short"])
        scorer = inside(reranker._caller.scorer, LongDocuments)
        cursors, _ = scorer._cursors([(QUERY, document)], Call(), settings)
        cutter, (cursor,) = scorer._tokenizer.cutter(), cursors[0]
        texts = []
        while not cursor.ended:
            (span,) = cutter.advance([cursor])
            texts.append(document[span.start : span.end])
    logits = oracle(folder, [(QUERY, text) for text in texts], activation="identity")
    best = {"first": 0}.get(aggregate, int(np.argmax(logits)))
    expected = {
        "max": logits.max(),
        "first": logits[0],
        "mean": logits.mean(),
        "topk_mean": np.sort(logits)[-2:].mean(),
    }[aggregate]
    (found,) = [it for it in ranking if it.index == 0]
    assert len(texts) > 4
    assert found.score == pytest.approx(1 / (1 + np.exp(-expected)), abs=TOLERANCE)
    assert document[slice(*found.span)] == texts[best]
    assert found.truncated == (aggregate == "first")
    (short,) = [it for it in ranking if it.index == 1]
    assert short.span == (0, 5)
    assert short.score == pytest.approx(
        oracle(folder, [(QUERY, "short")], activation="sigmoid")[0], abs=TOLERANCE
    )


def test_max_windows_bounds_the_work_and_says_so():
    """So many windows from the beginning on; what is behind them is not read."""
    backend = CountingBackend()
    with _over(backend, Windows(16, 16, max_windows=3)) as reranker:
        (found,) = reranker.rerank("q", [FILLER * 20])
        assert backend.rows == 3
        assert found.truncated
        assert found.span[1] < len(FILLER) * 4
        (short,) = reranker.rerank("q", ["a b c"])
        assert not short.truncated


def test_a_document_that_fits_costs_what_it_costs_without(monkeypatch):
    """The same forwards of the same tokens, no text tokenised twice, and the same numbers."""
    documents = ["It is red.", FILLER, ANSWER * 2, ""]
    read: list[str] = []
    for name in ("fast", "full"):
        original = getattr(Reader, name)
        monkeypatch.setattr(
            Reader,
            name,
            lambda self, it, to=original: read.extend(filter(None, it)) or to(self, it),
        )
    seen = []
    for windows in (None, Windows(400)):
        backend = CountingBackend()
        with _over(backend, windows, 512) as reranker:
            read.clear()
            ranking = reranker.rerank("how tall", documents)
        texts = [text for text in read if text != "how tall"]
        seen.append(
            (ranking.scores, ranking.indices, backend.tokens, backend.forwards, sorted(texts))
        )
    assert seen[0] == seen[1]


def test_all_windows_of_all_queries_share_one_plan():
    """Two queries of long documents run in as few batches as their windows need."""
    backend = CountingBackend()
    document = FILLER * 8
    with _over(backend, Windows(20, 20), max_batch_tokens=2048) as reranker:
        reranker.rerank_many([("tall", [document, document + "x"]), ("red", [document])])
    assert backend.rows > 15
    assert backend.forwards <= -(-backend.tokens // 2048) + 1


def test_pieces_change_nothing_but_memory(monkeypatch):
    """More windows than go at once are queued one after the other: same answers, same spans."""
    documents = [FILLER * 30, "short", ANSWER + FILLER * 9, " \n ", FILLER * 3]
    request = RerankRequest("q", documents, on_empty_text="score")
    settings = Windows(16, 8, "topk_mean")
    rankings, progress = [], []
    for most in (1024, 7, 1):
        monkeypatch.setattr(pieces, "WINDOWS_AT_ONCE", most)
        counts: list[int] = []
        with _over(CountingBackend(), settings) as reranker:
            rankings += reranker.rerank_many([request], on_progress=counts.append)
            assert asyncio.run(reranker.arerank_many([request])) == rankings[:1]
        progress.append(sum(counts))
    assert rankings[0] == rankings[1] == rankings[2]
    assert progress == [5, 5, 5]


def test_memory_is_flat_for_ten_megabytes():
    """What Python holds beside the document is a small part of it, windows in flight included."""
    document = FILLER * 155_000
    assert len(document) > 10_000_000
    with _over(CountingBackend(), Windows(48, 48, max_windows=6000)) as reranker:
        reranker.rerank("q", [FILLER])
        tracemalloc.start()
        (found,) = reranker.rerank("q", [document])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert found.truncated
    assert peak < 6_000_000, "two pieces of windows, their tokens, and one number for each window"


def test_a_window_that_fails_fails_its_request_alone():
    """The request whose document holds it has the error; the others their rankings."""
    poison = 0

    def rule(batch):
        return ValueError("no such token") if (batch.input_ids == poison).any() else None

    backend = FaultyBackend(rule)
    with _over(backend, Windows(16, 16)) as reranker:
        from tests.fakes import tiny_tokenizer

        poison = int(tiny_tokenizer().read(["zebra"]).ids[0])
        requests = [("q", [FILLER * 5]), ("q", [FILLER * 5 + "zebra " + FILLER]), ("q", ["a"])]
        found = reranker.rerank_many(requests, return_exceptions=True)
    assert isinstance(found[1], BackendError)
    assert [len(found[0]), len(found[2])] == [1, 1]


def test_a_late_or_cancelled_request_leaves_nothing_running(monkeypatch):
    """With the device held: a deadline passes, a caller leaves; no further window runs."""
    monkeypatch.setattr(pieces, "WINDOWS_AT_ONCE", 4)
    backend = HeldBackend()
    with _over(backend, Windows(16, 16)) as reranker:
        first = reranker.submit("q", ["a"])
        assert backend.entered.wait(30)
        with pytest.raises(TimeoutError):
            reranker.rerank("q", [FILLER * 30], timeout=0.05)
        leaving = reranker.submit("q", [FILLER * 30])
        leaving.cancel()
        backend.release.set()
        assert len(first.result(30)) == 1
        assert reranker.rerank("q", ["b"]).indices == [0]
        stats = reranker.stats()
    assert backend.rows == 2
    assert stats["unfinished"] == 0


QUESTION = "tall?"
texts = st.lists(
    st.sampled_from(["", " ", "a", "red tower.", FILLER, FILLER * 3, ANSWER + FILLER * 2]),
    max_size=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents=texts, order=st.randoms(use_true_random=False))
def test_properties(shared, documents: list[str], order):
    """Order, company and repeats change no score; one equals many; nothing cut, nothing changed."""
    windowed, wide, bare = shared
    alone = [windowed.score(QUESTION, [document])[0] for document in documents]
    assert windowed.score(QUESTION, documents).tolist() == alone
    shuffled = documents * 2
    order.shuffle(shuffled)
    table = dict(zip(documents, alone, strict=True))
    scores = windowed.score(QUESTION, shuffled)
    assert scores.tolist() == [table[document] for document in shuffled]
    ranking = windowed.rerank(QUESTION, shuffled)
    assert sorted(ranking.indices) == list(range(len(shuffled)))
    for first, second in zip(ranking, list(ranking)[1:], strict=False):
        assert (-first.score, first.index) <= (-second.score, second.index) or not (
            shuffled[first.index].strip() and shuffled[second.index].strip()
        )
    assert wide.rerank(QUESTION, documents).scores == bare.rerank(QUESTION, documents).scores


@pytest.fixture(scope="module")
def shared():
    made = [_over(CountingBackend(), it, 512) for it in (Windows(16, 8), Windows(400), None)]
    yield made
    for reranker in made:
        reranker.close()


def test_paragraphs_are_scored_by_the_closest(bare):
    """Only the best k by closeness are scored; the best of those gives the score and the span."""
    texts = ["It is red.", "The tower is 330 m tall.", "Trees grow.", "It is 12 m wide."]
    scores = bare.score(QUERY, texts)
    document = Paragraphs(texts, closeness=[0.9, 0.5, 0.1, 0.7], keep=2)
    (found,) = bare.rerank(QUERY, [document])
    assert found.score == max(scores[0], scores[3])
    assert document[slice(*found.span)] == texts[0 if scores[0] >= scores[3] else 3]
    whole = Paragraphs(texts, closeness=[0, 0, 0, 0], keep=9)
    assert bare.rerank(QUERY, [whole])[0].span == (12, 36)
    assert bare.rerank(QUERY, [whole])[0].score == scores.max()
    assert str(document) == "\n\n".join(texts)
    assert pickle.loads(pickle.dumps(document)) == document
    other = Paragraphs(texts, closeness=[0.1, 0.5, 0.9, 0.7])
    assert other != document
    both = bare.rerank(QUERY, [other, document, "\n\n".join(texts)])
    assert len({it.score for it in both}) == 3, "equal text, other paragraphs: not one pair"


def test_paragraphs_with_half_a_character_stay_paragraphs(bare):
    """They are read as they are scored, whole, and the document is what its span counts in."""
    document = Paragraphs(["red \ud83d", "tall"], closeness=[1, 0])
    (found,) = bare.rerank("q", [document])
    assert document == Paragraphs(["red \ufffd", "tall"], closeness=[1, 0])
    assert found.span == (0, 5)
    assert found.score == bare.score("q", ["red \ufffd"])[0]


def test_a_long_paragraph_is_read_in_windows(windowed, bare):
    """Both at once: the window of the paragraph that is kept."""
    document = Paragraphs(["It is red.", long_document(bare), ANSWER], closeness=[1, 3, 2], keep=1)
    (found,) = windowed.rerank(QUERY, [document])
    assert document.bounds[1][0] <= found.span[0] < found.span[1] <= document.bounds[1][1]
    assert ANSWER.strip() in document[slice(*found.span)]
    assert found.score == bare.score(QUERY, [document[slice(*found.span)]])[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Windows(0), "windows.tokens must be an int of at least 1: got 0"),
        (lambda: Windows(8, 9), "windows.stride must be at most windows.tokens, 8"),
        (lambda: Windows(8, aggregate="sum"), "windows.aggregate must be one of"),
        (lambda: Windows(8, max_windows=True), "windows.max_windows must be an int"),
        (lambda: RerankerConfig(windows=8), "windows must be Windows(tokens, ...), a mapping"),
        (lambda: RerankerConfig(windows={"size": 8}), "windows must have tokens, and may have"),
    ],
)
def test_what_windows_must_not_be(make, message: str):
    """Each mistake names the field, the rule and the value."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [], 1), "closeness must hold one number per paragraph: got 0 for 1"),
        (("a", [1], 1), "paragraphs must be one or more str: got 'a'"),
        (([], [], 1), "paragraphs must be one or more str: got []"),
        ((["a"], [float("nan")], 1), "closeness[0] must be a number: got nan"),
        ((["a"], [1], 0), "keep must be an int of at least 1: got 0"),
    ],
)
def test_what_paragraphs_must_not_be(arguments, message: str):
    """The same for paragraphs."""
    paragraphs, closeness, keep = arguments
    with pytest.raises(InputError) as caught:
        Paragraphs(paragraphs, closeness=closeness, keep=keep)
    assert str(caught.value) == message


def test_a_mapping_is_windows():
    """As JSON and adapters give it; equal values are equal configurations."""
    one = RerankerConfig(windows={"tokens": 64, "stride": 32})
    assert one == RerankerConfig(windows=Windows(64, 32))
    assert hash(one) == hash(RerankerConfig(windows=json.loads('{"tokens": 64, "stride": 32}')))
    assert Windows(**one.windows.to_dict()) == one.windows


def test_a_query_that_leaves_little_room_makes_windows_smaller():
    """The document is never cut by the pair's limit: half of it is there for any query."""
    backend = CountingBackend()
    with _over(backend, Windows(48), 64) as reranker:
        (found,) = reranker.rerank("tall " * 80, [FILLER * 20])
        assert found.truncated, "the query is"
        assert backend.rows > 8
        rows = backend.rows
        (found,) = reranker.rerank("tall " * 4, [FILLER * 20])
        assert not found.truncated
        assert backend.rows - rows > 5
        reranker.rerank_many([RerankRequest("tall", [FILLER * 20], prompt="Find: ")])


def _over(backend, windows, max_length: int = 64, **options) -> Reranker:
    return reranker_over(backend, windows=windows, max_length=max_length, **options)
