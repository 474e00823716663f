"""What a checkpoint's files say about its tokenizer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from ..checkpoints import NO_LIMIT, Checkpoint, as_model_error, refuse_pointer
from ..errors import ModelError
from .overrides import class_of, overruled
from .truncation import Side

Convert = Callable[[Path], Path]

# Tokenizer classes that hand token_type_ids to the model: `model_input_names` of the class, which a
# list in tokenizer_config.json replaces. No other class that a file names does, not even
# PreTrainedTokenizerFast.
_WITH_TYPE_IDS = {
    *("bert", "canine", "convbert", "deberta", "debertav2", "dprcontextencoder"),
    *("dprquestionencoder", "electra", "fnet", "layoutlm", "layoutlmv2", "lxmert", "markuplm"),
    *("mobilebert", "squeezebert", "tapas"),
}
# Where no file names a class it is the model's own: these hand none.
_WITHOUT_TYPE_IDS = {
    *("albert", "barthez", "bigbird", "camembert", "cohere", "distilbert", "gpt2", "gptneox"),
    *("gemma", "herbert", "llama", "mpnet", "qwen2", "rembert", "roberta", "splinter", "t5"),
    *("xlmroberta",),
}


MOST_GROWTH = 10_000
"""Letters that a normalizer may write for one; those of known models write a few."""

_VOCABULARIES = ("vocab*", "merges*", "*.model", "*.spm", "*bpe*", "*.tiktoken")


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """The tokenizer, free of baked-in truncation and padding, and what goes with it.

    types   whether the model is given type ids
    """

    tokenizer: Tokenizer
    max_length: int
    truncation_side: Side
    pad_id: int
    types: bool

    @classmethod
    def read(cls, checkpoint: Checkpoint, convert: Convert | None) -> Files:
        """Read tokenizer.json and what goes with it; ModelError where it is missing or damaged."""
        folder, settings, sentence = checkpoint.folder, checkpoint.tokenizer, checkpoint.sentence
        tokenizer = overruled(_load(folder, convert), checkpoint)
        truncation, padding = tokenizer.truncation or {}, tokenizer.padding or {}
        side = settings.get("truncation_side", truncation.get("direction", "right"))
        if side not in ("left", "right"):
            raise ModelError(f"truncation_side in {folder} must be 'left' or 'right': got {side!r}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if sentence.get("do_lower_case"):
            own = [tokenizer.normalizer] if tokenizer.normalizer else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        return cls(
            tokenizer,
            max_length=_stored_length(checkpoint),
            truncation_side=side,
            pad_id=checkpoint.pad_id(tokenizer.token_to_id, padding.get("pad_id")),
            types=_gives_types(checkpoint),
        )


def _load(folder: Path, convert: Convert | None) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        if convert is None:
            raise ModelError(
                f"{file} is missing: pip install 'rerank-adapters[torch]' brings what converts the "
                "older tokenizer files"
            )
        if not any(found for kind in _VOCABULARIES for found in folder.glob(kind)):
            # transformers would make a tokenizer of the special tokens alone, and score nonsense.
            raise ModelError(f"{file} is missing, and {folder} holds no older vocabulary either")
        file = convert(folder)
    refuse_pointer(file)
    with as_model_error(f"{file} is no tokenizer that `tokenizers` can read: it"):
        tokenizer = Tokenizer.from_file(str(file))
        _check_growth(file, tokenizer)
    return tokenizer


def _check_growth(file: Path, tokenizer: Tokenizer) -> None:
    """Refuse a normalizer that may make a letter into thousands: a few lines would take all memory.

    Told from its rules, since trying them would take it.
    """
    if tokenizer.normalizer is None:
        return
    growth = _growth(json.loads(tokenizer.normalizer.__getstate__()))
    if growth > MOST_GROWTH:
        raise ModelError(
            f"{file} has a normalizer that may write {growth:.0e} letters for one: it must be at "
            f"most {MOST_GROWTH}"
        )


def _growth(rule: dict[str, Any]) -> float:
    """How many letters a normalizer may write for one, by its own JSON."""
    if rule.get("type") == "Sequence":
        parts = [_growth(part) for part in rule.get("normalizers", ())]
        return min(math.prod(parts), 1e300)
    if rule.get("type") == "Prepend":
        return 1.0 + len(rule.get("prepend", ""))
    if rule.get("type") != "Replace":
        return 1.0
    pattern, written = rule.get("pattern", {}), len(rule.get("content", ""))
    if pattern.get("String"):
        return max(1.0, written / len(pattern["String"]))
    return 1.0 + written  # a pattern may match between any two letters


def _stored_length(checkpoint: Checkpoint) -> int:
    """The limit sentence-transformers' own settings give, else the tokenizer's."""
    settings, sentence = checkpoint.tokenizer, checkpoint.sentence
    text = (sentence.get("processing_kwargs") or {}).get("text") or {}
    own = sentence.get("max_seq_length")
    own = own if _is_length(own) else settings.get("model_max_length")
    stated: tuple[Any, ...] = (text.get("max_length"), own)
    if any(isinstance(length, str) for length in stated):
        raise ModelError(f"max_length in {checkpoint.folder} must be a number: got {stated!r}")
    lengths = [length for length in stated if _is_length(length)]
    return int(min([*lengths, NO_LIMIT]))  # transformers writes 1e30 for "no limit"


def _is_length(value: object) -> bool:
    """Whether it bounds anything: -1, 0, null, NaN, true and words do not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def _gives_types(checkpoint: Checkpoint) -> bool:
    settings, kind = checkpoint.tokenizer, class_of(checkpoint)
    if (names := settings.get("model_input_names")) is not None:
        return "token_type_ids" in names
    stated = settings.get("tokenizer_class") or checkpoint.config.get("tokenizer_class")
    if stated and not checkpoint.tokenizer_code:
        return kind in _WITH_TYPE_IDS
    return kind not in _WITHOUT_TYPE_IDS
