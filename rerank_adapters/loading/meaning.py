"""What the files of a checkpoint mean: how a pair is written, and what its logits say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints import ABSENT, Checkpoint, as_model_error
from ..config import RerankerConfig
from ..errors import MissingDependencyError
from ..families import Family, family_for
from ..tokenization import PairTokenizer
from .finding import Found


@dataclass(frozen=True, slots=True)
class Meaning:
    """The family and the tokenizer of a checkpoint, under one configuration."""

    family: Family
    tokenizer: PairTokenizer

    @property
    def framed(self) -> bool:
        """Whether pairs stand in a plain frame that somebody gave, and not in the files' own."""
        return self.family.template is not None and self.family.template.frame


def read(found: Found) -> Meaning:
    """Read the files of *found*; ModelError where a value in them is of the wrong kind."""
    with as_model_error(f"a file in {found.folder} holds a value of the wrong kind and"):
        return _read(found)


def _read(found: Found) -> Meaning:
    config, checkpoint, frame = found.config, found.checkpoint, found.frame
    family = family_for(
        checkpoint,
        activation=config.activation,
        prompt=config.prompt,
        render=lambda checkpoint, prompt: _torch().render_chat(checkpoint, prompt, **_code(config)),
        frame=frame,
    )
    tokenizer = PairTokenizer.from_checkpoint(
        checkpoint,
        max_length=config.max_length,
        truncation=config.truncation,
        query_max_tokens=config.query_max_tokens,
        special_tokens=config.special_tokens,
        tokenizer=config.tokenizer,
        prompt=family.prompt,
        template=family.template,
        position_limit=family.position_limit,
        convert=_converter(config),
    )
    words = family.answers
    if words is None and found.backend == "onnx" and _open_answers(checkpoint, family):
        words = ("yes", "no")  # sentence-transformers' own, which torch has by itself
    if words is not None:
        tokens = tokenizer.answer_tokens(words)
        family = replace(family, answer_tokens=tokens)
    return Meaning(family, tokenizer)


def _open_answers(checkpoint: Checkpoint, family: Family) -> bool:
    """Whether a language model's files do not say which tokens are its answers."""
    exported = checkpoint.manifest.labels is not ABSENT
    return checkpoint.causal and family.answer_tokens is None and not exported


def _converter(config: RerankerConfig) -> Callable[[Path], Path]:
    return lambda folder: Path(_torch().convert_tokenizer(folder, **_code(config)))


def _code(config: RerankerConfig) -> dict[str, Any]:
    """Whether code may run, and where that of other repositories lies."""
    return {
        "trust_remote_code": config.trust_remote_code,
        "cache_folder": config.cache_folder,
    }


def _torch() -> Any:
    """backends.torch, imported only where a checkpoint or its tokenizer cannot do without."""
    try:
        from ..backends import torch
    except ImportError as error:
        raise MissingDependencyError((error.name or "torch").partition(".")[0], "torch") from error
    return torch
