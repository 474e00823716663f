"""Load a CrossEncoder whose every weight is the checkpoint's, or refuse it; one load at a time."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from transformers import PreTrainedModel

from ...checkpoints import Checkpoint, check_files, check_stored, why_unreadable
from ...errors import ModelError
from .arithmetic import check_arithmetic

# transformers keeps what it ties and what it initialises per process, so two threads that load at
# once leave weights without values (transformers issue 41782).
_LOADING = threading.RLock()

# What other code left beside the weights of a network, by rule: buffers that are computed, heads of
# pretraining, and a pooler that the class does not have. No score reads any of it.
_LEFT_OVER = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|num_batches_tracked)$"
    r"|(^|\.)attn\.bias$|(^|\.)pooler\.|^qa_outputs\."
    r"|^(cls|lm_head|lm_predictions|mask_predictions|vocab_\w+|generator_\w+|discriminator_\w+)\."
)

_SHOWN = 6
"""Weights that an error names."""


@dataclass(frozen=True, slots=True)
class _Report:
    """What transformers says of one network that it loaded."""

    network: PreTrainedModel
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def load_whole(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    answers: tuple[int, int | None] | None = None,
    cache_folder: str | None = None,
) -> CrossEncoder:
    """Load the checkpoint in *folder* through sentence-transformers, in eval mode.

    answers: token ids of a language model's yes and no, in place of the files'.
    cache_folder: where code of another repository lies; it is not fetched here.

    Raises ModelError where weights are missing, unread or of another shape, where the class is not
    the files', where answers are no tokens of its vocabulary, and where nothing can load it.
    """
    checkpoint = Checkpoint.read(folder)
    if not checkpoint.reranks:
        raise checkpoint.no_reranker()
    check_files(folder, trust_remote_code=trust_remote_code)
    check_arithmetic(checkpoint)
    check_stored(folder)
    with _LOADING, _reports() as reports:
        cross_encoder = _load(
            checkpoint,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            answers=answers,
            cache_folder=cache_folder,
        )
    for report in reports:
        _check_class(checkpoint, report.network, trust_remote_code)
        _check_weights(checkpoint, report, trust_remote_code)
    if answers is None or checkpoint.modules:
        _check_answers(checkpoint, cross_encoder)
    _check_vocabulary(checkpoint, cross_encoder)
    _give_pad_token(checkpoint, cross_encoder)
    cross_encoder.eval()
    return cross_encoder


def _load(checkpoint: Checkpoint, **options: Any) -> CrossEncoder:
    folder, answers = checkpoint.folder, options.pop("answers")
    # Given for nothing, sentence-transformers warns of it.
    options["cache_folder"] = options["cache_folder"] if checkpoint.code_elsewhere else None
    shared = {"trust_remote_code": options["trust_remote_code"], "local_files_only": True}
    try:
        if answers is not None and not checkpoint.modules:
            return _with_answers(folder, answers, shared, **options)
        stated = checkpoint.architectures or checkpoint.modules
        cross_encoder: CrossEncoder = CrossEncoder(
            str(folder),
            device=str(options["device"]),
            # Without a class in config.json one label would be assumed; the files say how many.
            num_labels=None if stated else checkpoint.labels,
            model_kwargs={"dtype": options["dtype"]},
            config_kwargs=_padding(checkpoint),
            cache_folder=options["cache_folder"],
            **shared,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a library that runs other people's code raises anything
        said = f"{type(error).__name__}: {error}"
        cure = why_unreadable(folder)
        raise ModelError(f"sentence-transformers cannot load {folder}: {said}{cure}") from error
    if answers is not None:
        last: Any = list(cross_encoder.children())[-1]
        last.true_token_id, last.false_token_id = answers
    return cross_encoder


def _with_answers(
    folder: Path, answers: tuple[int, int | None], shared: dict[str, Any], **options: Any
) -> CrossEncoder:
    """Read a language model at *answers*, which sentence-transformers takes as modules."""
    try:
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.cross_encoder.modules import LogitScore
    except ImportError as error:
        raise ModelError(
            f"{folder} is a language model, which needs sentence-transformers 5.6 or later: "
            "pip install 'sentence-transformers>=5.6'"
        ) from error
    read = {**shared, "cache_dir": options["cache_folder"]}
    network = Transformer(
        str(folder),
        transformer_task="text-generation",
        model_kwargs={**read, "dtype": options["dtype"]},
        processor_kwargs=dict(read),
        config_kwargs=dict(read),
    )
    score = LogitScore(true_token_id=answers[0], false_token_id=answers[1])
    device = str(options["device"])
    made: CrossEncoder = CrossEncoder(modules=[network, score], device=device, **shared)
    return made


@contextmanager
def _reports() -> Iterator[list[_Report]]:
    """Collect what transformers reports of the networks that this thread loads meanwhile.

    Its report is `from_pretrained(..., output_loading_info=True)`, which sentence-transformers does
    not ask for; so the question is put in between. Other threads' loads are left as they are.
    """
    collected: list[_Report] = []
    usual: Any = PreTrainedModel.__dict__["from_pretrained"]
    thread = threading.get_ident()

    def from_pretrained(cls: Any, *arguments: Any, **options: Any) -> Any:
        if threading.get_ident() != thread or options.get("output_loading_info"):
            return usual.__func__(cls, *arguments, **options)
        # Weights of another shape are judged with the rest, by name.
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        network, said = usual.__func__(cls, *arguments, **options)
        names = ("missing_keys", "unexpected_keys", "mismatched_keys")
        collected.append(_Report(network, *(_names(said.get(name)) for name in names)))
        return network

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign, assignment]
    try:
        yield collected
    finally:
        PreTrainedModel.from_pretrained = usual  # type: ignore[method-assign]


def _names(keys: Any) -> list[str]:
    """Return weight names, sorted; of another shape they come as (name, stored, wanted)."""
    return sorted(
        key if isinstance(key, str) else f"{key[0]} ({_shape(key[1])}, not {_shape(key[2])})"
        for key in keys or ()
    )


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _check_class(checkpoint: Checkpoint, network: PreTrainedModel, trusted: bool) -> None:
    """Refuse a network of a class that config.json does not name."""
    name, stated = type(network).__name__, checkpoint.architectures
    code = [str(path).rpartition(".")[2] for path in checkpoint.code.values()]
    if not stated or name in (*stated, *code):
        return
    if checkpoint.modules and stated[0].startswith(name.removesuffix("Model")):
        return  # a chain of modules takes the backbone out of whatever class was saved
    cure = (
        "pass trust_remote_code=True to run the repository's own class, once you have read it, or "
        'backend="onnx" where it has an ONNX file'
        if checkpoint.code and not trusted
        else "correct architectures or model_type in config.json"
    )
    raise ModelError(
        f"the weights of {checkpoint.folder} are those of {stated[0]}, and transformers makes a "
        f"{name} of its config.json: {cure}"
    )


def _check_weights(checkpoint: Checkpoint, report: _Report, trusted: bool) -> None:
    """Refuse a network that has weights of its own making, or does not read all that there are."""
    backbone = bool(checkpoint.modules) and not type(report.network).__name__.endswith(
        ("ForCausalLM", "ForSequenceClassification")
    )
    # A chain of modules pools token embeddings itself, whatever pooler and head its class brings.
    missing = [it for it in report.missing if not (backbone and it.startswith("pooler."))]
    unread = [] if backbone else [it for it in report.unexpected if not _LEFT_OVER.search(it)]
    if backbone:
        unread = [it for it in report.unexpected if re.search(r"(^|\.)(layers?|h)\.\d+\.", it)]
    found = {
        "has no": missing,
        "has weights that its class does not read:": unread,
        "has weights of another shape:": report.mismatched,
    }
    told = [f"{what} {_listed(names)}" for what, names in found.items() if names]
    if not told:
        return
    cure = "get the whole checkpoint, or correct config.json"
    if checkpoint.code and not trusted:
        cure = "pass trust_remote_code=True to run the repository's own class, or " + cure
    raise ModelError(
        f"{checkpoint.folder} is not the whole of a {type(report.network).__name__}, and scores "
        f"from made-up weights mean nothing: it {'; it '.join(told)}; {cure}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_answers(checkpoint: Checkpoint, cross_encoder: CrossEncoder) -> None:
    """Refuse a language model whose answers are no tokens of its own vocabulary."""
    tokenizer: Any = cross_encoder.tokenizer
    first: Any = cross_encoder[0] if checkpoint.modules else None
    stages: list[Any] = list(cross_encoder.children())
    for stage in stages:
        if not hasattr(stage, "true_token_id"):
            continue
        ids = [stage.true_token_id, getattr(stage, "false_token_id", None)]
        words = ("yes", "no")
        if checkpoint.modules:
            rows = first.model.config.get_text_config().vocab_size
            bad = [it for it in ids if it is not None and not 0 <= int(it) < rows]
            if bad:
                raise ModelError(
                    f"{checkpoint.folder} reads answers at the token ids {bad}, and its vocabulary "
                    f"has {rows}: correct the config.json of its LogitScore"
                )
        elif lacking := [word for word in words if word not in tokenizer.get_vocab()]:
            raise ModelError(
                f"a language model answers with a token, and {' and '.join(map(repr, lacking))} "
                f"is none of {checkpoint.folder}: pass answers= with tokens of its vocabulary"
            )


def _padding(checkpoint: Checkpoint) -> dict[str, int] | None:
    """What must stand in place of a pad token beyond the embeddings, which torch does not load."""
    pad = checkpoint.config.get("pad_token_id")
    if not isinstance(pad, int) or pad < checkpoint.rows:
        return None
    return {"pad_token_id": checkpoint.pad_id(lambda _: None)}


def _check_vocabulary(checkpoint: Checkpoint, cross_encoder: CrossEncoder) -> None:
    """Refuse a tokenizer whose words the network has no rows for.

    Added tokens beyond them are left alone: many checkpoints have some, and no text writes them.
    """
    inner = getattr(cross_encoder.tokenizer, "_tokenizer", None)
    words = {} if inner is None else inner.get_vocab(with_added_tokens=False)
    most = max(words.values(), default=0)
    if most >= checkpoint.rows:
        raise ModelError(
            f"the tokenizer of {checkpoint.folder} writes token ids up to {most}, and its weights "
            f"have {checkpoint.rows} rows (vocab_size): the two are not of one checkpoint; get the "
            "whole checkpoint"
        )


def _give_pad_token(checkpoint: Checkpoint, cross_encoder: CrossEncoder) -> None:
    """Let tokenizer and network pad with one token that there is.

    A decoder's config.json may name none, -1 or one beyond its embeddings, and its tokenizer too.
    """
    tokenizer: Any = cross_encoder.tokenizer
    if tokenizer is None:
        return
    rows = checkpoint.rows
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        found = checkpoint.pad_id(tokenizer.get_vocab().get)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(found)
    first: Any = cross_encoder[0] if hasattr(cross_encoder, "preprocess") else cross_encoder
    config: Any = first.model.config.get_text_config()
    stated = getattr(config, "pad_token_id", None)
    if stated is None or not 0 <= stated < rows:
        config.pad_token_id = tokenizer.pad_token_id


def _renew() -> None:
    """In a forked child: the thread that was loading did not come along."""
    global _LOADING
    _LOADING = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
