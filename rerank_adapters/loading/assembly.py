"""The network on its devices behind a queue, and the chain of scorers over it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..backends import LoadOptions, backend_module
from ..calibration import Calibration
from ..checkpoints import ABSENT, Checkpoint, as_model_error
from ..clean import one_line
from ..config import RerankerConfig
from ..document_tokens import DocumentTokens
from ..early_exit import ExitHead
from ..engine.admission import Admission, Limits
from ..engine.batching import BatchRule
from ..engine.engine import Engine
from ..engine.worker import Forward
from ..errors import BackendError, ConfigError
from ..families import Family
from ..passages import Windows
from ..protocols import (
    Backend,
    BackendTraits,
    ModelFamily,
    ModelInfo,
    Scorer,
    StagedBackend,
)
from ..score_cache import ScoreCache
from ..scorers.cached import Cached
from ..scorers.calibrated import Calibrated
from ..scorers.cross_encoder import CrossEncoder
from ..scorers.distinct import Distinct
from ..scorers.early_exit import EarlyExits, Exits
from ..scorers.long_documents import LongDocuments
from ..scorers.queued import Queued
from ..scorers.stored import Stored
from ..tokenization import PairTokenizer
from ..tokens import ExitLogits, Scores, TokenBatch
from .exits import ChosenExit, chosen_exit
from .finding import Found
from .identity import check_weights, weights_of
from .meaning import Meaning
from .numbers import numbers_context

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A network on its devices and the engine before it: what several leases share."""

    engine: Engine
    backends: tuple[Backend, ...]

    @property
    def described(self) -> tuple[str, ...]:
        """What each backend says it runs: device, numbers, kernels; its threads change nothing."""
        told = ({**backend.info(), "num_threads": 0} for backend in self.backends)
        return tuple(repr(sorted(facts.items(), key=str)) for facts in told)

    @property
    def wants_texts(self) -> bool:
        """Whether a backend's own tokenizer writes the pairs."""
        return any(backend.traits.wants == "texts" for backend in self.backends)


def start(found: Found, meaning: Meaning) -> Loaded:
    """Load the network of *found* on each of its devices, one engine before all of them."""
    config, tokenizer = found.config, meaning.tokenizer
    module, uncut = backend_module(found.backend), tokenizer.uncut()
    with as_model_error(f"the model in {found.folder}"):
        backends = [
            module.load(
                found.folder,
                found.selection,
                LoadOptions(
                    device=device,
                    dtype=config.dtype,
                    num_workers=config.num_workers,
                    num_threads=config.num_threads,
                    trust_remote_code=config.trust_remote_code,
                    prompt=config.prompt,
                    pad_id=tokenizer.pad_id,
                    pad_side=tokenizer.pad_side,
                    max_length=tokenizer.max_length,
                    answers=meaning.family.answer_tokens,
                    labels=meaning.family.labels,
                    framed=meaning.framed,
                    encode=lambda pairs: uncut.encode(pairs).batch,
                    tokenizer_json=lambda: tokenizer.tokenizer_json,
                    cache_folder=config.cache_folder,
                    exit_layers=_exit_layers(found.checkpoint),
                ),
            )
            for device in config.devices
        ]
    return _behind_engine(
        backends,
        meaning.family,
        num_workers=config.num_workers,
        max_batch_tokens=config.max_batch_tokens,
    )


def compose(
    found: Found,
    meaning: Meaning,
    loaded: Loaded,
    *,
    ends_engine: bool = True,
    on_close: Callable[[], None] | None = None,
) -> Scorer:
    """Put the chain of scorers over *loaded* that *found*'s configuration asks for.

    ends_engine: whether closing it frees the network, else it only lets go of it (*on_close*).
    """
    config, tokenizer = found.config, meaning.tokenizer
    _check_texts(config, tokenizer, loaded)
    check_weights(config.calibration, lambda: weights_of(found), config.model)
    exits = chosen_exit(config, found.checkpoint, [it.traits for it in loaded.backends])
    return _chain(
        tokenizer,
        meaning.family,
        loaded,
        limits=_limits(config),
        max_batch_tokens=config.max_batch_tokens,
        facts=_facts(found, tokenizer, exits, loaded.engine.held.most),
        prompt=config.prompt,
        windows=config.windows,
        cache=config.cache,
        document_tokens=config.document_tokens,
        calibration=config.calibration,
        weights=lambda: weights_of(found),
        exits=exits,
        context=numbers_context(found, meaning, loaded.described, exits),
        ends_engine=ends_engine,
        on_close=on_close,
    )


def _facts(
    found: Found, tokenizer: PairTokenizer, exits: ChosenExit | None, most: int
) -> dict[str, Any]:
    """What is told of the model beside what its backends say; *most* bytes of states are held."""
    facts: dict[str, Any] = {
        "model": found.config.model,
        "revision": found.source.revision,
        "fingerprint": found.fingerprint,
        "why": found.why,
    }
    if tokenizer.whole_pairs or tokenizer.unaccelerated:
        logger.info("%s: %s", one_line(found.config.model), one_line(tokenizer.reads_with))
    if exits is not None:
        facts["early_exit"] = (
            f"{exits}; at most {most} bytes of hidden states are kept, or one query's"
        )
    return facts


def assemble(
    tokenizer: PairTokenizer,
    family: ModelFamily,
    backends: Sequence[Backend],
    *,
    num_workers: int | None = None,
    max_batch_tokens: int | None = None,
    limits: Limits | None = None,
    windows: Windows | None = None,
    cache: ScoreCache | None = None,
    document_tokens: DocumentTokens | None = None,
    calibration: Calibration | None = None,
    exits: ChosenExit | None = None,
) -> Scorer:
    """The same chain over parts that are here already; closing it closes *backends*."""
    loaded = _behind_engine(
        backends, family, num_workers=num_workers, max_batch_tokens=max_batch_tokens
    )
    return _chain(
        tokenizer,
        family,
        loaded,
        limits=limits or Limits(),
        max_batch_tokens=max_batch_tokens,
        facts={"model": type(backends[0]).__name__},
        windows=windows,
        cache=cache,
        document_tokens=document_tokens,
        calibration=calibration,
        exits=exits,
        context=repr(
            (tokenizer.max_length, family.activation, windows, exits and exits.identity)
        ).encode(),
    )


def _chain(
    tokenizer: PairTokenizer,
    family: ModelFamily,
    loaded: Loaded,
    *,
    limits: Limits,
    max_batch_tokens: int | None,
    facts: Mapping[str, Any],
    prompt: str | None = None,
    windows: Windows | None = None,
    cache: ScoreCache | None = None,
    document_tokens: DocumentTokens | None = None,
    calibration: Calibration | None = None,
    weights: Callable[[], tuple[str, ...]] = tuple,
    exits: ChosenExit | None = None,
    context: bytes = b"",
    ends_engine: bool = True,
    on_close: Callable[[], None] | None = None,
) -> Scorer:
    """Calibrated → distinct → cached → stored → long documents → early exit → queued(core)."""
    info = _info(tokenizer, family, loaded, facts, max_batch_tokens)
    core = CrossEncoder(tokenizer, family, info=info, wants_texts=loaded.wants_texts, prompt=prompt)
    admission = Admission(
        loaded.engine,
        limits=limits,
        max_batch_tokens=max_batch_tokens,
        ends_engine=ends_engine,
        on_close=on_close,
    )
    scorer: Scorer = Queued(core, admission)
    if exits is not None:
        heads = [head for head, _ in exits.steps]
        state_bytes = max(_tried(it, heads, tokenizer.pad_id) for it in loaded.backends)
        chosen = Exits(exits.steps, state_bytes, _activate(family))
        scorer = EarlyExits(scorer, core, admission, chosen)
    scorer = LongDocuments(scorer, windows, tokenizer, _activate(family), document_tokens)
    if document_tokens is not None:
        scorer = Stored(scorer, document_tokens, tokenizer, windows)
    if cache is not None:
        scorer = Cached(scorer, cache, context, by_query=exits is not None)
    whole = Distinct(scorer, by_query=exits is not None)
    return Calibrated(whole, calibration, weights)


def _behind_engine(
    backends: Sequence[Backend],
    family: ModelFamily,
    *,
    num_workers: int | None,
    max_batch_tokens: int | None,
) -> Loaded:
    forwards = [
        (_forward(backend, family.labels), _rule(backend.traits, max_batch_tokens))
        for backend in backends
        for _ in range(num_workers or backend.traits.workers)
    ]

    def free() -> None:
        for backend in backends:
            backend.close()

    survives = all(backend.traits.survives_fork for backend in backends)
    return Loaded(Engine(forwards, survives_fork=survives, on_close=free), tuple(backends))


def _tried(backend: Backend, heads: Sequence[ExitHead], pad_id: int) -> int:
    """Run two tokens through all parts, so that they are ready: the bytes that one keeps.

    Raises ConfigError where a head was trained for states of another width.
    """
    two = np.full(2, pad_id, np.int32)
    batch = TokenBatch(two, np.zeros_like(two), np.array([2], np.int64))
    staged = cast("StagedBackend", backend)
    states, after, most = None, 0, 0
    for head in heads:
        pooled, states = staged.start(batch, head.layer, states, after=after)
        after, most = head.layer, max(most, int(states[0].nbytes) // 2)
        if pooled.shape[1] != len(head.weight):
            raise ConfigError(
                f"early_exit.heads must be trained for this model: got {len(head.weight)} weights "
                f"for {pooled.shape[1]} numbers of pooled states"
            )
    if states is not None:
        staged.resume(batch, states, after)
    return most


def _exit_layers(checkpoint: Checkpoint) -> tuple[int, ...]:
    exits = checkpoint.manifest.exits
    return () if exits is ABSENT else exits.layers


def _forward(backend: Backend, labels: int) -> Forward:
    def forward(batch: TokenBatch) -> NDArray[np.float32]:
        stage = batch.stage
        if stage is not None and stage.head is not None:
            return _exit_logits(backend, batch, stage.after, stage.head, labels)
        logits = backend.logits(batch) if stage is None else _resumed(backend, batch, stage.after)
        if logits.shape != (len(batch), labels):
            raise BackendError(
                f"the model returned logits of shape {logits.shape} for {len(batch)} pairs and "
                f"{labels} label(s): its weights and config.json disagree"
            )
        return logits

    return forward


def _exit_logits(
    backend: Backend, batch: TokenBatch, after: int, head: ExitLogits, labels: int
) -> NDArray[np.float32]:
    """Run a part: exit logits in each column of as many as the last layer's logits have."""
    given = _states(batch) if after else None
    pooled, states = cast("StagedBackend", backend).start(batch, head.layer, given, after=after)
    logits = head(pooled)
    for held, logit, each in zip(batch.held, logits.tolist(), states, strict=True):
        held.offer(logit, each)
    return np.repeat(logits[:, None], labels, axis=1)


def _states(batch: TokenBatch) -> list[Any]:
    """What an earlier part made of each pair."""
    states = [held.states for held in batch.held]
    if any(each is None for each in states):
        raise BackendError("a request in this batch was dropped, and its hidden states with it")
    return states


def _resumed(backend: Backend, batch: TokenBatch, after: int) -> NDArray[np.float32]:
    """Run the last part; states of pairs that have their logits are free from then on."""
    logits = cast("StagedBackend", backend).resume(batch, _states(batch), after)
    for held, row in zip(batch.held, logits, strict=True):
        if np.isfinite(row).all():  # else the pair is tried again alone
            held.leave()
    return logits


def _activate(family: ModelFamily) -> Callable[[Scores], Scores]:
    """From what rankings sort by to scores: of two labels it is the lead of the second."""
    if isinstance(family, Family):
        return family.scores_of

    def activate(keys: Scores) -> Scores:
        columns = [np.zeros_like(keys)] * (family.labels - 1)
        return family.scores(np.stack([*columns, keys], axis=1))

    return activate


def _rule(traits: BackendTraits, max_batch_tokens: int | None) -> BatchRule:
    most = max_batch_tokens or traits.batch_tokens
    return BatchRule(
        max_tokens=most,
        max_padding=traits.max_padding,
        # A pass that pads nothing lets lengths differ in a batch as they like.
        free_padding=traits.free_padding if traits.pads else most,
    )


def _limits(config: RerankerConfig) -> Limits:
    return Limits(
        pairs=config.max_queue_pairs,
        tokens=config.max_queue_tokens,
        block=config.when_full == "block",
    )


def _info(
    tokenizer: PairTokenizer,
    family: ModelFamily,
    loaded: Loaded,
    facts: Mapping[str, Any],
    max_batch_tokens: int | None,
) -> ModelInfo:
    infos = [backend.info() for backend in loaded.backends]
    values: dict[str, Any] = {
        **infos[0],
        "max_length": tokenizer.max_length,
        "max_batch_tokens": max_batch_tokens or loaded.backends[0].traits.batch_tokens,
        "activation": family.activation,
        "labels": family.labels,
        "workers": loaded.engine.workers,
        "devices": tuple(str(info.get("device")) for info in infos) if len(infos) > 1 else (),
        **facts,
    }
    known = {field.name for field in fields(ModelInfo)}
    details = {name: str(value) for name, value in values.items() if name not in known}
    return ModelInfo(
        **{name: value for name, value in values.items() if name in known}, details=details
    )


def _check_texts(config: RerankerConfig, tokenizer: PairTokenizer, loaded: Loaded) -> None:
    """Refuse what only our own tokenizer can hold where the checkpoint's must run."""
    if not loaded.wants_texts:
        return
    usual, why = RerankerConfig(), loaded.backends[0].info().get("fallback")
    if tokenizer.special_tokens == "as_text":
        default = "" if config.special_tokens else ", which is 'as_text' for this checkpoint"
        raise ConfigError(
            f"special_tokens must be 'as_tokens' for a checkpoint that writes its own texts ({why})"
            f", since what a text spells is a token there: got {config.special_tokens!r}{default}; "
            'pass special_tokens="as_tokens" where no text comes from a stranger'
        )
    ours = ("truncation", "query_max_tokens", "tokenizer", "document_tokens")
    asked = [name for name in ours if getattr(config, name) != getattr(usual, name)]
    if config.tokenizer == "huggingface":
        asked.remove("tokenizer")
    if asked:
        values = ", ".join(f"{name}={getattr(config, name)!r}" for name in asked)
        raise ConfigError(
            f"{', '.join(ours)} need pairs written by us, and this checkpoint writes its own "
            f"({why}): got {values}; leave them at their defaults"
        )
