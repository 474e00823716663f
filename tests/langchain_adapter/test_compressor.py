"""CrossEncoderCompressor: what comes back, what stays as it was, and what is refused."""

from __future__ import annotations

import copy
import json
import threading
from typing import Any, get_type_hints

import numpy as np
import pytest
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import ConfigurableField, Runnable

from rerank_adapters import (
    BackendError,
    ConfigError,
    InputError,
    ModelError,
    Reranker,
    RerankerConfig,
)
from rerank_adapters.langchain import CrossEncoderCompressor
from rerank_adapters.langchain.settings import Overrides, Settings
from rerank_adapters.testing import ranker_of
from tests.fakes import ConstantBackend, CountingBackend, reranker_over
from tests.langchain_adapter.samples import (
    KEY,
    QUERIES,
    QUERY,
    TEXTS,
    TOLERANCE,
    best,
    documents,
    ids,
    invoked,
    oracle,
    scores,
)


class Emptied(Document):
    """A document of which one field was set to None, which Document itself lets pass."""

    def __init__(self, field: str = "page_content") -> None:
        super().__init__("text")
        setattr(self, field, None)


class Stubborn(Document):
    """A document that cannot be copied."""

    def model_copy(self, **changes: Any) -> Any:
        raise RuntimeError("no copies")


@pytest.fixture
def compressor(ready: Reranker) -> CrossEncoderCompressor:
    return CrossEncoderCompressor(reranker=ready)


def test_scores_and_order_are_the_oracle_s(compressor: CrossEncoderCompressor) -> None:
    """Scores are sentence-transformers' within 1e-4, best first, and the top three come back."""
    wanted = oracle(QUERY)
    found = compressor.compress_documents(documents(), QUERY)
    assert ids(found) == best(wanted, 3)
    np.testing.assert_allclose(scores(found), -np.sort(-wanted)[:3], atol=TOLERANCE)


def test_one_object_is_a_compressor_and_a_runnable(compressor: CrossEncoderCompressor) -> None:
    """Both interfaces are its own, and give the same documents."""
    assert isinstance(compressor, BaseDocumentCompressor)
    assert isinstance(compressor, Runnable)
    invoked = compressor.invoke({"query": QUERY, "documents": documents()})
    assert invoked == compressor.compress_documents(documents(), QUERY)


async def test_async_gives_the_same(compressor: CrossEncoderCompressor) -> None:
    """acompress_documents, ainvoke and abatch agree with their sync twins to the bit."""
    wanted = compressor.compress_documents(documents(), QUERY)
    given = {"query": QUERY, "documents": documents()}
    assert await compressor.acompress_documents(documents(), QUERY) == wanted
    assert await compressor.ainvoke(given) == wanted
    assert await compressor.abatch([given]) == [wanted]


def test_scores_are_python_floats_that_survive_json(compressor: CrossEncoderCompressor) -> None:
    """type(score) is float; json.dumps and model_dump_json keep it to the last bit."""
    for document in compressor.compress_documents(documents(), QUERY):
        score = document.metadata[KEY]
        assert type(score) is float
        assert json.loads(json.dumps(document.metadata))[KEY] == score
        assert json.loads(document.model_dump_json())["metadata"][KEY] == score


def test_inputs_are_left_as_they_were(compressor: CrossEncoderCompressor) -> None:
    """Inputs are deep-equal before and after, and never the objects that come back."""
    given = documents()
    before = copy.deepcopy(given)
    found = compressor.compress_documents(given, QUERY, top_n=None)
    assert given == before
    assert not {id(document) for document in given} & {id(document) for document in found}
    assert not {id(d.metadata) for d in given} & {id(d.metadata) for d in found}


def test_id_type_and_metadata_survive(ready: Reranker) -> None:
    """A subclass with a field of its own comes back as one, with its id and all of its metadata."""

    class Passage(Document):
        page: int = 0

    given = [
        Passage(id=f"p{index}", page_content=text, page=index, metadata={"nested": {"n": [index]}})
        for index, text in enumerate(TEXTS)
    ]
    for found in CrossEncoderCompressor(reranker=ready, top_n=None).compress_documents(
        given, QUERY
    ):
        assert isinstance(found, Passage)
        assert found.id == f"p{found.page}"
        assert {**found.metadata, KEY: None} == {**given[found.page].metadata, KEY: None}


def test_a_second_query_leaves_the_first_result_alone(compressor: CrossEncoderCompressor) -> None:
    """Results of query 1 are unchanged by query 2 over the same list."""
    given = documents()
    first = compressor.compress_documents(given, QUERIES[0])
    before = copy.deepcopy(first)
    compressor.compress_documents(given, QUERIES[1])
    assert first == before


def test_reranking_a_reranked_list_overwrites_the_score(compressor: CrossEncoderCompressor) -> None:
    """A stale score in the metadata never survives."""
    first = compressor.compress_documents(documents(), QUERIES[0], top_n=None)
    again = compressor.compress_documents(first, QUERIES[1], top_n=None)
    fresh = compressor.compress_documents(documents(), QUERIES[1], top_n=None)
    assert {d.id: d.metadata[KEY] for d in again} == {d.id: d.metadata[KEY] for d in fresh}


def test_the_score_s_name_can_be_chosen(ready: Reranker) -> None:
    """score_key names the metadata key; nothing is written under the default one."""
    found = CrossEncoderCompressor(reranker=ready, score_key="rank/score").compress_documents(
        documents(), QUERY
    )
    assert all(type(document.metadata["rank/score"]) is float for document in found)
    assert all(KEY not in document.metadata for document in found)


def test_no_score_is_written_without_a_key(ready: Reranker) -> None:
    """score_key=None: the order is the ranker's, the metadata are what they were."""
    plain = CrossEncoderCompressor(reranker=ready, score_key=None)
    found = plain.compress_documents(documents(), QUERY)
    assert found == [documents()[int(str(one.id)[1:])] for one in found]
    assert ids(found) == best(oracle(QUERY), 3)


def test_top_n(ready: Reranker) -> None:
    """None is all, more than there are is all, and 3 is the default."""
    order = best(oracle(QUERY))
    for top_n, count in ((None, len(TEXTS)), (len(TEXTS) + 5, len(TEXTS)), (1, 1)):
        found = CrossEncoderCompressor(reranker=ready, top_n=top_n).compress_documents(
            documents(), QUERY
        )
        assert ids(found) == order[:count]
    assert len(CrossEncoderCompressor(reranker=ready).compress_documents(documents(), QUERY)) == 3


@pytest.mark.parametrize("top_n", [0, -1, "x", "3", 3.0, True])
def test_top_n_below_one_is_refused(ready: Reranker, top_n: object) -> None:
    """At construction, on assignment (which leaves the old value) and per call."""
    with pytest.raises(ConfigError, match="top_n"):
        CrossEncoderCompressor(reranker=ready, top_n=top_n)
    compressor = CrossEncoderCompressor(reranker=ready)
    with pytest.raises(ConfigError, match="top_n"):
        compressor.top_n = top_n  # type: ignore[assignment]  # what is refused
    assert compressor.top_n == 3
    with pytest.raises(InputError, match=r"top_n must be an int of at least 1, or None for all"):
        compressor.compress_documents(documents(), QUERY, top_n=top_n)


def test_score_threshold_is_inclusive_and_comes_before_top_n(
    compressor: CrossEncoderCompressor,
) -> None:
    """A threshold equal to the second-best score keeps exactly two, whatever top_n allows."""
    full = compressor.compress_documents(documents(), QUERY, top_n=None)
    floor = scores(full)[1]
    found = compressor.compress_documents(documents(), QUERY, score_threshold=floor, top_n=None)
    assert found == full[:2]
    above = float(np.nextafter(np.float32(floor), np.float32(np.inf)))
    assert compressor.compress_documents(documents(), QUERY, score_threshold=above) == full[:1]
    assert compressor.compress_documents(documents(), QUERY, score_threshold=1e9) == []


def test_ties_keep_the_order_given(compressor: CrossEncoderCompressor) -> None:
    """Equal texts have equal scores, and stay in the order given."""
    given = documents([TEXTS[1], TEXTS[0], TEXTS[1], TEXTS[1]])
    found = compressor.compress_documents(given, QUERY, top_n=None)
    assert [i for i in ids(found) if i != "d1"] == ["d0", "d2", "d3"]
    assert len(set(scores(found))) == 2


def test_text_fn_builds_what_is_scored(ready: Reranker) -> None:
    """Scores are the oracle's over text_fn's texts; the content that comes back is unchanged."""
    compressor = CrossEncoderCompressor(
        reranker=ready, text_fn=lambda document: f"{document.metadata['source']}. See also: bread"
    )
    wanted = oracle(QUERY, [f"file {index}. See also: bread" for index in range(len(TEXTS))])
    found = compressor.compress_documents(documents(), QUERY, top_n=None)
    assert {d.id: d.page_content for d in found} == {d.id: d.page_content for d in documents()}
    np.testing.assert_allclose(scores(found), -np.sort(-wanted), atol=TOLERANCE)


def test_rank_fields_come_before_the_content(ready: Reranker) -> None:
    """Each as "name: value" on a line of its own; what a document lacks is left out."""
    given = [
        Document("a haiku", metadata={"title": "Poems", "year": 1694}),
        Document("a haiku", metadata={"year": None, "title": "Seasons"}),
    ]
    texts = ["title: Poems\nyear: 1694\na haiku", "title: Seasons\na haiku"]
    found = CrossEncoderCompressor(
        reranker=ready, rank_fields=["title", "year"]
    ).compress_documents(given, QUERY)
    np.testing.assert_allclose(scores(found), -np.sort(-oracle(QUERY, texts)), atol=TOLERANCE)


def test_text_fn_must_give_text(ready: Reranker) -> None:
    """What gives no str is an InputError that names the document."""
    with pytest.raises(InputError, match=r"text_fn\(documents\[1\]\) must give a str: got None"):
        CrossEncoderCompressor(
            reranker=ready, text_fn=lambda d: None if d.id == "d1" else d.page_content
        ).compress_documents(documents(), QUERY)


def test_documents_without_text_go_last(compressor: CrossEncoderCompressor) -> None:
    """keep_last: after all others, in the order given, with a float no higher than any score."""
    given = documents(["", TEXTS[0], " \n\t", TEXTS[1], TEXTS[2]])
    found = compressor.compress_documents(given, QUERY, top_n=None)
    assert ids(found)[3:] == ["d0", "d2"]
    assert scores(found)[3] == scores(found)[4] == min(0.0, scores(found)[2])
    assert ids(compressor.compress_documents(given, QUERY, top_n=4))[3:] == ["d0"]
    # What was not scored cannot meet a threshold.
    assert len(compressor.compress_documents(given, QUERY, score_threshold=-1e9, top_n=None)) == 3


def test_documents_without_text_carry_no_more_than_nothing() -> None:
    """Where every score is above 0 they carry 0, and the lowest score where one is below."""
    for lowest, carried in ((0.25, 0.0), (-0.5, -0.5)):
        table = {(QUERY, TEXTS[0]): 0.75, (QUERY, TEXTS[1]): lowest}
        over = CrossEncoderCompressor(reranker=ranker_of(table), top_n=None)
        found = over.compress_documents(documents([" ", *TEXTS[:2]]), QUERY)
        assert scores(found) == [0.75, lowest, carried]


def test_documents_without_text_are_dropped_or_refused(compressor: CrossEncoderCompressor) -> None:
    """Policy "drop" leaves them out; "error" names the first of them and the cure."""
    given = documents([TEXTS[0], "", TEXTS[1]])
    found = compressor.compress_documents(given, QUERY, on_empty_text="drop")
    assert sorted(map(str, ids(found))) == ["d0", "d2"]
    with pytest.raises(InputError, match=r"documents\[1\] must have text"):
        compressor.compress_documents(given, QUERY, on_empty_text="error")


def test_dedupe(compressor: CrossEncoderCompressor) -> None:
    """By id or content the first of equals stays; no id equals no other; None keeps all."""
    texts = [TEXTS[0], TEXTS[1], TEXTS[0]]
    twins = [Document(text, id=key) for text, key in zip(texts, ["a", "a", "b"], strict=True)]

    def kept(given: list[Document], dedupe: str | None) -> list[tuple[str, str | None]]:
        found = compressor.compress_documents(given, QUERY, dedupe=dedupe, top_n=None)
        return sorted((document.page_content, document.id) for document in found)

    assert kept(twins, "id") == [(TEXTS[0], "a"), (TEXTS[0], "b")]
    assert kept(twins, "content") == sorted([(TEXTS[0], "a"), (TEXTS[1], "a")])
    assert len(kept(twins, None)) == 3
    assert len(kept([Document(text) for text in texts], "id")) == 3


def test_settings_per_call(compressor: CrossEncoderCompressor) -> None:
    """bind, config["configurable"] and invoke arguments, in rising order of precedence."""
    given = {"query": QUERY, "documents": documents()}
    configured = {"configurable": {"top_n": 2, "thread_id": "someone else's"}}
    assert len(compressor.bind(top_n=1).invoke(given)) == 1
    assert len(compressor.invoke(given, configured)) == 2
    assert len(compressor.with_config(configurable={"top_n": 4}).invoke(given)) == 4
    assert len(compressor.invoke(given, configured, top_n=5)) == 5
    assert len(compressor.bind(top_n=1).invoke(given, configured)) == 1
    assert len(compressor.invoke(given)) == 3


def test_every_setting_can_be_given_per_call(compressor: CrossEncoderCompressor) -> None:
    """Each of them changes the answer of its call alone."""
    given = {"query": QUERY, "documents": [*documents(), Document("", id="d99"), documents()[0]]}
    plain = compressor.invoke(given, top_n=None)
    assert len(plain) == len(TEXTS) + 2
    assert len(compressor.invoke(given, top_n=None, dedupe="id")) == len(TEXTS) + 1
    assert len(compressor.invoke(given, top_n=None, on_empty_text="drop")) == len(TEXTS) + 1
    assert "s" in compressor.invoke(given, score_key="s")[0].metadata
    floor = scores(plain)[3]
    assert len(compressor.invoke(given, top_n=None, score_threshold=floor)) == 4
    flat = compressor.invoke(given, top_n=None, text_fn=lambda _: "the same for all")
    assert len(set(scores(flat))) == 1
    named = compressor.invoke(given, top_n=None, rank_fields=["source"])
    assert scores(named) != scores(plain)
    assert compressor.invoke(given, top_n=None) == plain


def test_naming_one_text_rule_per_call_drops_the_other(ready: Reranker) -> None:
    """text_fn in the fields and rank_fields in the call do not collide; both at once do."""
    compressor = CrossEncoderCompressor(reranker=ready, text_fn=lambda _: "the same for all")
    found = compressor.compress_documents(documents(), QUERY, rank_fields=["source"], top_n=None)
    assert len(set(scores(found))) > 1
    with pytest.raises(ConfigError, match="text_fn builds the whole text"):
        CrossEncoderCompressor(reranker=ready, text_fn=str, rank_fields=["source"])


def test_rank_fields_are_names(compressor: CrossEncoderCompressor) -> None:
    """One str, or what holds other things, is refused; in a field a list is kept as a tuple."""
    for names in ("source", ["source", 1], {"source"}):
        with pytest.raises(InputError, match="rank_fields must be a sequence of str"):
            compressor.compress_documents(documents(), QUERY, rank_fields=names)  # type: ignore[arg-type]  # what is refused
        with pytest.raises(ConfigError, match="rank_fields"):
            CrossEncoderCompressor(rank_fields=names)  # type: ignore[arg-type]  # likewise
    assert CrossEncoderCompressor(rank_fields=["source"]).rank_fields == ("source",)


def test_type_checkers_know_the_arguments_of_a_call() -> None:
    """The typed dict of overrides has the names and types of the settings, no more and no less."""
    assert get_type_hints(Overrides) == get_type_hints(Settings)


def test_metadata_may_be_anything(compressor: CrossEncoderCompressor) -> None:
    """What no copy, no comparison and no JSON takes is handed on as the same object."""
    values = {"lock": threading.Lock(), "array": np.arange(3), 7: object()}
    (found,) = compressor.compress_documents([Document("bread", metadata=values)], QUERY)
    assert all(found.metadata[name] is value for name, value in values.items())
    assert found.id is None


def test_a_document_that_cannot_be_copied_fails_only_its_query(
    compressor: CrossEncoderCompressor,
) -> None:
    """Its own error comes back where its documents would; the other query is answered."""
    good = {"query": QUERY, "documents": documents()}
    bad = {"query": QUERY, "documents": [Stubborn("bread")]}
    answer, error = compressor.batch([good, bad], return_exceptions=True)
    assert answer == compressor.invoke(good)
    assert isinstance(error, RuntimeError)
    assert str(error) == "no copies"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_a_score_that_is_no_number_is_an_error(value: float, asynchronous: bool) -> None:
    """NaN never sorts: the call fails, and says which pair."""
    with reranker_over(ConstantBackend(value)) as reranker:
        compressor = CrossEncoderCompressor(reranker=reranker)
        given = {"query": QUERY, "documents": documents()}
        with pytest.raises(BackendError, match=f"must be finite: got {value}"):
            await invoked(compressor, given, asynchronous=asynchronous)


def test_configurable_alternatives(compressor: CrossEncoderCompressor) -> None:
    """A whole compressor chosen by the run's config."""
    either = compressor.configurable_alternatives(
        ConfigurableField(id="which"),
        wide=CrossEncoderCompressor(reranker=compressor.reranker, top_n=None),
    )
    given = {"query": QUERY, "documents": documents()}
    assert len(either.invoke(given)) == 3
    assert len(either.invoke(given, {"configurable": {"which": "wide"}})) == len(TEXTS)


def test_configurable_fields(compressor: CrossEncoderCompressor) -> None:
    """LangChain's own way of making a field configurable works on any field."""
    derived = compressor.configurable_fields(top_n=ConfigurableField(id="how_many"))
    given = {"query": QUERY, "documents": documents()}
    assert len(derived.invoke(given, {"configurable": {"how_many": 5}})) == 5
    assert len(derived.invoke(given)) == 3


def test_an_unknown_argument_of_a_call_is_refused(compressor: CrossEncoderCompressor) -> None:
    """The error lists what a call takes."""
    with pytest.raises(InputError, match=r"a call takes top_n, .*: got top_k"):
        compressor.invoke({"query": QUERY, "documents": documents()}, top_k=3)


@pytest.mark.parametrize("given", [documents(), QUERY, {"query": QUERY}, {"question": 1}, None])
def test_input_without_query_and_documents_shows_the_lcel_form(
    compressor: CrossEncoderCompressor, given: object
) -> None:
    """`retriever | compressor` hands over a bare list: the query is gone, and the error says so."""
    with pytest.raises(InputError) as caught:
        compressor.invoke(given)  # type: ignore[arg-type]  # what is refused
    form = "RunnableParallel(documents=retriever, query=RunnablePassthrough()) | compressor"
    assert form in str(caught.value)


@pytest.mark.parametrize(
    ("query", "given", "message"),
    [
        (" ", documents(), "query must be a str that is not blank: got ' '"),
        (None, documents(), "query must be a str that is not blank: got None"),
        (QUERY, [*documents()[:2], "text"], r"documents\[2\] must be a Document: got 'text'"),
        (QUERY, "text", "documents must be an iterable of Document: got 'text'"),
        (QUERY, None, "documents must be an iterable of Document: got None"),
        (QUERY, [Emptied()], r"documents\[0\].page_content must be a str: got None"),
        (QUERY, [Emptied("metadata")], r"documents\[0\].metadata must be a dict: got None"),
    ],
)
def test_wrong_input_is_named(
    compressor: CrossEncoderCompressor, query: object, given: object, message: str
) -> None:
    """A blank query and what is no document are InputErrors that say which."""
    with pytest.raises(InputError, match=message):
        compressor.compress_documents(given, query)  # type: ignore[arg-type]  # what is refused


def test_unknown_and_wrong_fields_are_refused() -> None:
    """Unknown ones as TypeErrors; each of ours keeps the rule of the core, and its error."""
    for field in ("top_k", "batch_size"):
        with pytest.raises(TypeError, match=field):
            CrossEncoderCompressor(**{field: 3})
    for field, value in {
        "backend": "tensorflow",
        "device": "gpu",
        "dtype": "int4",
        "max_length": 0,
        "activation": "relu",
        "on_empty_text": "keep",
        "dedupe": "hash",
        "score_threshold": float("nan"),
        "score_key": "",
        "text_fn": "page_content",
    }.items():
        with pytest.raises(ConfigError, match=field):
            CrossEncoderCompressor(**{field: value})


def test_assignment_that_breaks_a_rule_between_fields_is_undone() -> None:
    """int8 needs ONNX: backend="torch" is refused, and the old value is still there."""
    compressor = CrossEncoderCompressor(dtype="int8")
    with pytest.raises(ConfigError, match="int8"):
        compressor.backend = "torch"
    assert compressor.backend == "auto"
    assert compressor == CrossEncoderCompressor(dtype="int8")


def test_fields_are_the_configuration_s() -> None:
    """Names and defaults are RerankerConfig's, all of them."""
    ours = CrossEncoderCompressor()
    theirs = RerankerConfig()
    for name in RerankerConfig.__dataclass_fields__:
        assert getattr(ours, name) == getattr(theirs, name), name


def test_a_ready_reranker_excludes_the_configuration(ready: Reranker) -> None:
    """A field that would change nothing is refused."""
    with pytest.raises(ConfigError, match=r"max_length would change nothing"):
        CrossEncoderCompressor(reranker=ready, max_length=64)


def test_a_generator_of_documents_is_fine(compressor: CrossEncoderCompressor) -> None:
    """Any iterable is read once."""
    wanted = compressor.compress_documents(documents(), QUERY)
    assert compressor.compress_documents((d for d in documents()), QUERY) == wanted  # type: ignore[arg-type]  # wider than the base class says
    assert compressor.invoke({"query": QUERY, "documents": iter(documents())}) == wanted


async def test_no_documents_load_no_model() -> None:
    """[] in, [] out, without looking for the model: this one does not exist."""
    compressor = CrossEncoderCompressor(model="/no/such/folder")
    assert compressor.compress_documents([], QUERY) == []
    assert await compressor.acompress_documents([], QUERY) == []
    assert compressor.compress_documents([Document("")], QUERY, on_empty_text="drop") == []
    with pytest.raises(ModelError, match="/no/such/folder"):
        compressor.compress_documents(documents(), QUERY)


def test_the_model_is_asked_once_for_identical_texts() -> None:
    """Identical pairs are scored once: two distinct texts, two rows."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        given = documents([TEXTS[0], TEXTS[1]] * 5)
        CrossEncoderCompressor(reranker=reranker).compress_documents(given, QUERY)
    assert backend.rows == 2
