"""Subclasses: what they override is honoured on every way in, once; what they add is kept."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from typing import Any, Self

import pytest
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from rerank_adapters import ConfigError, Reranker
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.exported import exported
from tests.fakes import CountingBackend, reranker_over
from tests.llama_index_adapter.examples import QUERY, InMemoryRetriever, nodes, outcome

OTHER = "How many eggs?"


class Tagging(CrossEncoderPostprocessor):
    """Writes into `seen` what passes through its sync hook, and keeps the first `kept`."""

    kept: int = 1
    seen: list[str] = Field(default_factory=list, exclude=True)

    def _postprocess_nodes(self, nodes, query_bundle=None):
        self.seen.append(f"sync {query_bundle.query_str}")
        return super()._postprocess_nodes(nodes, query_bundle)[: self.kept]


class TaggingAsync(CrossEncoderPostprocessor):
    """The same in its async hook alone."""

    seen: list[str] = Field(default_factory=list, exclude=True)

    async def _apostprocess_nodes(self, nodes, query_bundle=None):
        self.seen.append(f"async {query_bundle.query_str}")
        return (await super()._apostprocess_nodes(nodes, query_bundle))[:1]


class Both(Tagging):
    """Both hooks, over a class with one: each calls what it overrides."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        self.seen.append("both, sync")
        return super()._postprocess_nodes(nodes, query_bundle)

    async def _apostprocess_nodes(self, nodes, query_bundle=None):
        self.seen.append("both, async")
        return await super()._apostprocess_nodes(nodes, query_bundle)


class SyncOverAsync(TaggingAsync):
    """The sync hook, below a class that has the async one: it decides for both."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        self.seen.append(f"sync {query_bundle.query_str}")
        return super()._postprocess_nodes(nodes, query_bundle)[:1]


class Mixin:
    """No postprocessor itself."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        self.seen.append(f"sync {query_bundle.query_str}")
        return super()._postprocess_nodes(nodes, query_bundle)[:1]


class Mixed(Mixin, CrossEncoderPostprocessor):
    """A hook that comes from beside."""

    seen: list[str] = Field(default_factory=list, exclude=True)


class Public(CrossEncoderPostprocessor):
    """The public method around the hook."""

    seen: list[str] = Field(default_factory=list, exclude=True)

    def postprocess_nodes(self, nodes, query_bundle=None, query_str=None):
        self.seen.append(f"sync {query_str or query_bundle.query_str}")
        return super().postprocess_nodes(nodes, query_bundle, query_str)[:1]

    async def apostprocess_nodes(self, nodes, query_bundle=None, query_str=None):
        self.seen.append(f"async {query_str or query_bundle.query_str}")
        return (await super().apostprocess_nodes(nodes, query_bundle, query_str))[:1]


@pytest.fixture
def reranker() -> Iterator[Reranker]:
    with reranker_over(CountingBackend()) as over:
        yield over


def engine(postprocessor: CrossEncoderPostprocessor) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(
        InMemoryRetriever(nodes()),
        node_postprocessors=[postprocessor],
        response_mode="no_text",
    )


async def ways_in(postprocessor: CrossEncoderPostprocessor) -> dict[str, list[Any]]:
    """Every way in, asked once: what came out."""
    requests = [(QUERY, nodes()), (QueryBundle(OTHER), nodes())]
    one = await postprocessor.apostprocess_nodes(nodes(), query_str=QUERY)
    awaited = await postprocessor.apostprocess_nodes_batch(requests)
    answer = await engine(postprocessor).aquery(QUERY)
    return {
        "sync": [outcome(postprocessor.postprocess_nodes(nodes(), query_str=QUERY))],
        "sync batch": [outcome(it) for it in postprocessor.postprocess_nodes_batch(requests)],
        "sync engine": [outcome(engine(postprocessor).query(QUERY).source_nodes)],
        "async": [outcome(one)],
        "async batch": [outcome(it) for it in awaited],
        "async engine": [outcome(answer.source_nodes)],
    }


@pytest.mark.usefixtures("mocks")
@pytest.mark.parametrize("kind", [Tagging, SyncOverAsync, Mixed])
async def test_a_sync_hook_decides_on_every_way_in(reranker: Reranker, kind: type):
    """The one abstract method of the base class: every way in goes through it once per query."""
    plain = CrossEncoderPostprocessor(reranker=reranker, top_n=1)
    wanted = [
        outcome(it) for it in plain.postprocess_nodes_batch([(QUERY, nodes()), (OTHER, nodes())])
    ]
    postprocessor = kind(reranker=reranker, top_n=3)
    for way, results in (await ways_in(postprocessor)).items():
        assert results == (wanted if "batch" in way else wanted[:1]), way
    assert sorted(postprocessor.seen) == [f"sync {OTHER}"] * 2 + [f"sync {QUERY}"] * 6


@pytest.mark.usefixtures("mocks")
async def test_an_async_hook_decides_on_every_awaited_way_in(reranker: Reranker):
    """What overrides the async hook alone leaves sync calls as they are, as in the base class."""
    postprocessor = TaggingAsync(reranker=reranker, top_n=3)
    for way, results in (await ways_in(postprocessor)).items():
        assert [len(it) for it in results] == [1 if "async" in way else 3] * len(results), way
    assert sorted(postprocessor.seen) == [f"async {OTHER}"] + [f"async {QUERY}"] * 3


async def test_super_calls_what_is_overridden_once(reranker: Reranker):
    """Both hooks over a class with the sync one: each way passes both classes, each once."""
    postprocessor = Both(reranker=reranker, top_n=3)
    assert len(postprocessor.postprocess_nodes(nodes(), query_str=QUERY)) == 1
    assert postprocessor.seen == ["both, sync", f"sync {QUERY}"]
    postprocessor.seen.clear()
    assert len(await postprocessor.apostprocess_nodes(nodes(), query_str=QUERY)) == 1
    assert postprocessor.seen == ["both, async", f"sync {QUERY}"]


async def test_an_overridden_public_method_has_the_batch_as_well(reranker: Reranker):
    """A batch is that many calls of it."""
    postprocessor = Public(reranker=reranker, top_n=3)
    requests = [(QUERY, nodes()), (OTHER, nodes())]
    assert [len(it) for it in postprocessor.postprocess_nodes_batch(requests)] == [1, 1]
    assert [len(it) for it in await postprocessor.apostprocess_nodes_batch(requests)] == [1, 1]
    assert postprocessor.seen == [
        f"{way} {it}" for way in ("sync", "async") for it in (QUERY, OTHER)
    ]


async def test_what_a_call_was_given_passes_through_hooks(reranker: Reranker):
    """`top_n` of a call reaches super() through a hook that has no argument for it, in threads and
    batches too, and is gone afterwards.
    """
    postprocessor = Tagging(reranker=reranker, top_n=1, kept=99)
    requests = [(QUERY, nodes()), (OTHER, nodes())]
    results = [
        postprocessor.postprocess_nodes(nodes(), query_str=QUERY, top_n=4),
        await postprocessor.apostprocess_nodes(nodes(), query_str=QUERY, top_n=4),
        *postprocessor.postprocess_nodes_batch(requests, top_n=4),
        *await postprocessor.apostprocess_nodes_batch(requests, top_n=4),
    ]
    assert [len(it) for it in results] == [4] * 6
    assert len(postprocessor.postprocess_nodes(nodes(), query_str=QUERY)) == 1


async def test_of_an_awaited_batch_the_first_error_comes_out(reranker: Reranker):
    """Queries of an overridden hook are awaited together; what one raises is raised."""

    class Failing(CrossEncoderPostprocessor):
        async def _apostprocess_nodes(self, nodes, query_bundle=None):
            if query_bundle.query_str == OTHER:
                raise LookupError(OTHER)
            return await super()._apostprocess_nodes(nodes, query_bundle)

    postprocessor = Failing(reranker=reranker)
    with pytest.raises(LookupError):
        await postprocessor.apostprocess_nodes_batch([(QUERY, nodes()), (OTHER, nodes())])
    assert len((await postprocessor.apostprocess_nodes_batch([(QUERY, nodes())]))[0]) == 2


class Ready(CrossEncoderPostprocessor):
    """Fields, validators and a model_post_init of its own; the latter uses the model."""

    least: int = 1
    badge: str = "plain"
    _window: int = PrivateAttr(default=0)
    _first: list[NodeWithScore] = PrivateAttr(default_factory=list)

    @field_validator("least")
    @classmethod
    def _at_least_one(cls, value: int) -> int:
        if value < 1:
            raise ConfigError(f"least must be at least 1: got {value}")
        return value

    @field_validator("badge")
    @classmethod
    def _upper(cls, value: str) -> str:
        return value.upper()

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.top_n is not None and self.top_n < self.least:
            raise ValueError("top_n must be at least `least`")
        return self

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._first = self.postprocess_nodes(nodes(), query_str=QUERY)
        self._window = self._ranker().max_length


def ready(**fields: Any) -> Ready:
    return Ready(model=str(exported("bert")), backend="onnx", max_length=53, **fields)


def test_a_subclass_keeps_fields_validators_and_a_model_post_init_that_reranks():
    """The model can be used while the postprocessor is made; what is added is checked and saved."""
    postprocessor = ready(top_n=3, least=2, badge="mine")
    assert (postprocessor._window, postprocessor.badge) == (53, "MINE")
    assert len(postprocessor._first) == 3
    again = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    assert outcome(postprocessor._first) == outcome(again)
    back = Ready.from_dict(postprocessor.to_dict())
    assert (back.least, back.badge, back._window) == (2, "MINE", 53)
    assert pickle.loads(pickle.dumps(postprocessor)).least == 2
    with pytest.raises(ConfigError, match="least"):
        ready(least=0)
    with pytest.raises(ValidationError, match="top_n"):
        ready(top_n=1, least=2)
    with pytest.raises(ConfigError, match="device"):
        ready(device="gpu")
    assert asyncio.run(postprocessor.apostprocess_nodes(nodes(), query_str=QUERY)) == again
