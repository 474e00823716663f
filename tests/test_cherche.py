"""Our ranker in cherche's own pipelines: single and list queries, every operator."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from rerank_adapters import ClosedError, ConfigError, InputError, RerankerConfig
from rerank_adapters.testing import ranker_from
from tests import checkpoints
from tests.exported import exported

reason = "cherche is not installed: make test-neighbours"
retrieve = pytest.importorskip("cherche.retrieve", reason=reason)
rank = pytest.importorskip("cherche.rank", reason=reason)

from rerank_adapters.cherche import CrossEncoder  # noqa: E402

pytestmark = [
    pytest.mark.long("neighbours"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

TEXTS = list(dict.fromkeys(text for _, text in checkpoints.PAIRS if text.strip()))[:12]
QUERY = "why is the sky blue and the water cold"
OTHER = "how do I reset the password of the account"
TOLERANCE = 1e-4  # ONNX Runtime and sentence-transformers sum float32 in different orders (law 1)
MODEL = RerankerConfig(model=str(exported("bert")), backend="onnx", device="cpu")
LENGTHS = ranker_from(lambda query, document: float(len(document)))


def documents() -> list[dict[str, Any]]:
    return [{"id": f"d{index}", "text": text, "n": index} for index, text in enumerate(TEXTS)]


def bm25(k: int | None = None) -> Any:
    return retrieve.TfIdf(key="id", on="text", documents=documents(), k=k)


def expected(query: str) -> dict[str, float]:
    scores = checkpoints.oracle(checkpoints.build("bert"), [(query, text) for text in TEXTS])
    return {f"d{index}": float(score) for index, score in enumerate(scores)}


@pytest.fixture(scope="module")
def ranker() -> CrossEncoder:
    return CrossEncoder(on="text", key="id", encoder=MODEL)


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [one["id"] for one in found]


def test_a_pipeline_ranks_as_sentence_transformers_does(ranker: CrossEncoder) -> None:
    """Of what the retriever found, best first, each with its score and every other field."""
    search = bm25() + documents() + ranker
    given, known = bm25()(QUERY), expected(QUERY)
    found = search(QUERY)
    assert ids(found) == sorted(ids(given), key=lambda it: -known[it])
    assert all(type(one["similarity"]) is float for one in found)
    np.testing.assert_allclose(
        [one["similarity"] for one in found], [known[it] for it in ids(found)], 0, TOLERANCE
    )
    assert {one["id"]: one["text"] for one in found}.items() <= {
        one["id"]: one["text"] for one in documents()
    }.items()


def test_a_list_of_queries_has_a_list_for_each(ranker: CrossEncoder) -> None:
    """Each as by itself, in one pool or query by query."""
    search = bm25() + documents() + ranker
    single = [search(QUERY), search(OTHER)]
    assert search([QUERY, OTHER]) == single
    assert search([QUERY, OTHER], batch_size=1) == single


def test_it_stands_where_cherches_own_stands(ranker: CrossEncoder) -> None:
    """The same documents in the same order as cherche's ranker over the oracle's scores."""
    oracle = checkpoints.encoder_for(checkpoints.build("bert"))
    theirs = bm25() + documents() + rank.CrossEncoder(on="text", encoder=oracle.predict)
    ours = bm25() + documents() + ranker
    for query in (QUERY, [QUERY, OTHER]):
        mine, other = ours(query), theirs(query)
        if isinstance(query, str):
            mine, other = [mine], [other]
        assert [ids(one) for one in mine] == [ids(one) for one in other]


def test_operators_are_cherches(ranker: CrossEncoder) -> None:
    """Union, intersection and vote, of pipelines and of rankers: merged by rank."""
    search = bm25() + documents() + ranker
    first, second = ids(search(QUERY)), ids(bm25(k=3)(QUERY))
    union = (search | bm25(k=3))(QUERY)
    assert ids(union) == [*first, *(it for it in second if it not in first)]
    both = (search & bm25(k=3))(QUERY)
    assert set(ids(both)) == set(first) & set(second)
    vote = (search * bm25(k=3))(QUERY)
    assert [one["similarity"] for one in vote] == sorted(
        (one["similarity"] for one in vote), reverse=True
    )
    shorter = CrossEncoder(on="text", key="id", encoder=LENGTHS, k=2)
    given = bm25()(QUERY)
    full = [
        {**one, "text": dict(zip(ids(documents()), TEXTS, strict=True))[one["id"]]} for one in given
    ]
    for merged in (ranker | shorter, ranker & shorter, ranker * shorter):
        assert set(ids(merged(q=QUERY, documents=copy.deepcopy(full)))) <= set(ids(given))
    three = ranker | shorter | bm25(k=1)
    assert len(three.models) == 3
    assert len((ranker | (shorter | bm25(k=1))).models) == 3


def test_plus_makes_pipelines(ranker: CrossEncoder) -> None:
    """A ranker after a ranker; documents after a ranker are filled in, by key."""
    cut = CrossEncoder(on="text", key="id", encoder=LENGTHS, k=4)
    found = (bm25() + documents() + cut + ranker)(QUERY)
    longest = sorted(ids(bm25()(QUERY)), key=lambda it: -len(TEXTS[int(it[1:])]))[:4]
    assert set(ids(found)) == set(longest)
    bare = [{"id": one["id"], "text": one["text"]} for one in documents()]
    filled = (ranker + documents())(q=QUERY, documents=bare)
    assert all("n" in one for one in filled)
    with pytest.raises(ConfigError, match="key must name"):
        CrossEncoder(on="text", encoder=LENGTHS) + documents()


def test_fields_are_joined_and_missing_ones_left_out() -> None:
    """By rule: None and absent fields go, numbers are written, no text at all is blank."""
    seen: list[str] = []
    made = ranker_from(lambda query, document: seen.append(document) or float(len(document)))
    given = [
        {"id": 0, "title": "T", "text": "body", "year": 1999},
        {"id": 1, "title": None, "text": "other"},
        {"id": 2},
        {"id": 3, "text": "", "year": 0},
    ]
    before = copy.deepcopy(given)
    found = CrossEncoder(on=["title", "text", "year"], key="id", encoder=made)("q", given)
    assert seen == ["T body 1999", "other", "0"]
    assert ids(found) == [0, 1, 3, 2]
    assert found[-1]["similarity"] == 0.0
    assert given == before


def test_equal_scores_keep_the_order_and_k_cuts() -> None:
    """K of the call, else of the ranker; None is all."""
    flat = ranker_from(lambda query, document: 0.5)
    made = CrossEncoder(on="text", encoder=flat, k=3)
    assert ids(made("q", documents())) == ["d0", "d1", "d2"]
    assert ids(made("q", documents(), k=2)) == ["d0", "d1"]
    assert len(CrossEncoder(on="text", encoder=flat)("q", documents())) == 12
    assert made("q", []) == []
    assert made(["q", "r"], []) == [[]]
    assert made(["q", "r"], [[], documents()[:1]])[0] == []


WRONG = [
    (lambda: CrossEncoder(on=[]), ConfigError, "on must be a field's name"),
    (lambda: CrossEncoder(on="a", encoder=3), ConfigError, "encoder must be a hub id"),
    (lambda: CrossEncoder(on="a", k=0), ConfigError, "k must be an int of at least 1"),
    (lambda: CrossEncoder(on="a", encoder=LENGTHS)(" ", [{}]), InputError, "query must"),
    (lambda: CrossEncoder(on="a", encoder=LENGTHS)("q", ["a"]), InputError, r"documents\[0\] must"),
    (lambda: CrossEncoder(on="a", encoder=LENGTHS)(["q"], [[], []]), InputError, "for each query"),
    (lambda: CrossEncoder(on="a", encoder=LENGTHS)("q", [{}], k=0), InputError, "k must be an int"),
]


@pytest.mark.parametrize(("call", "kind", "words"), WRONG)
def test_mistakes_name_the_argument(call: Any, kind: type[Exception], words: str) -> None:
    """ConfigError at construction, InputError at a call."""
    with pytest.raises(kind, match=words):
        call()


def test_it_pickles_and_closes() -> None:
    """A copy loads by itself; a closed one says so."""
    made = CrossEncoder(on="text", key="id", encoder=MODEL)
    twin = pickle.loads(pickle.dumps(made))
    assert twin(QUERY, documents()) == made(QUERY, documents())
    made.close()
    with pytest.raises(ClosedError, match="the CrossEncoder is closed"):
        made(QUERY, documents())
