"""`rerank_adapters.json`: what an export knows that other files only tell torch or jinja2."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final

from ..errors import ModelError
from .graphs import HEADS
from .json import read_json, write_json
from .template import TextTemplate

FILE_NAME = "rerank_adapters.json"
FORMAT = 2
"""What this version writes, and the newest it reads."""


class Absent(Enum):
    """The type of `ABSENT`: a key that is not in the file, which is not the same as null."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT

_TEXTS = {"prefix", "middle", "suffix"}
_TEMPLATE: dict[str, type] = {
    "prefix": str,
    "middle": str,
    "suffix": str,
    "strip": bool,
    "document_first": bool,
    "frame": bool,
    "slot_in": str,
    "slot": list,
}


@dataclass(frozen=True, slots=True)
class ExitFiles:
    """Where scoring may end early: the `layers`, and the file of their `heads`.

    An ONNX graph `NAME.onnx` then lies there in parts too, cut at these layers: `NAME_part0.onnx`
    and on, whose weights are the whole one's.
    """

    layers: tuple[int, ...]
    heads: str = HEADS


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an exported folder states; what is ABSENT is read from the checkpoint's own files.

    labels          columns of the logits that the ONNX graph returns
    activation      "sigmoid", "identity" or "softmax": what activation="default" means
    causal          whether the model generates text, and so is read at its last token
    prompt          what is written into the template, or put before each query; None: nothing
    template        the text around a pair, None where pairs go through the tokenizer's own frame
    special_tokens  "as_text" or "as_tokens": what a text's "[SEP]" is unless it is said
    position_limit  most tokens of a pair, None for any
    label           the label whose lead over the others is the score, where files do not say
    scale           what the logit is multiplied by before the activation
    weights         the name of the weights that the graphs were made of, see loading.identity
    exits           the layers after which scoring may end early, and their heads
    """

    format: int = FORMAT
    labels: int | Absent = ABSENT
    activation: str | Absent = ABSENT
    causal: bool | Absent = ABSENT
    prompt: str | Absent | None = ABSENT
    template: TextTemplate | Absent | None = ABSENT
    special_tokens: str | Absent = ABSENT
    position_limit: int | Absent | None = ABSENT
    label: int | Absent | None = ABSENT
    scale: float | Absent = ABSENT
    weights: str | Absent = ABSENT
    exits: ExitFiles | Absent = ABSENT

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Read the manifest of *folder*, None where it has none.

        Raises ModelError where it is damaged, or written by a newer version.
        """
        file = folder / FILE_NAME
        if not file.is_file():
            return None
        content = read_json(file, {})
        stated = {entry.name: content[entry.name] for entry in fields(cls) if entry.name in content}
        _check(file, stated)
        if stated.get("template") is not None:
            stated["template"] = _template(stated["template"])
        if "exits" in stated:
            exits = stated["exits"]
            stated["exits"] = ExitFiles(tuple(exits["layers"]), exits["heads"])
        return cls(**stated)

    def write(self, folder: Path) -> None:
        """Write it into *folder*; what is ABSENT is left out."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        content = {name: value for name, value in content.items() if value is not ABSENT}
        if isinstance(self.template, TextTemplate):
            content["template"] = _written(self.template)
        if isinstance(self.exits, ExitFiles):
            content["exits"] = {"layers": list(self.exits.layers), "heads": self.exits.heads}
        write_json(folder / FILE_NAME, content)


def _template(stated: dict[str, Any]) -> TextTemplate:
    slot = stated.get("slot")
    return TextTemplate(**{**stated, "slot": None if slot is None else tuple(slot)})


def _written(template: TextTemplate) -> dict[str, Any]:
    """Return the template's texts, and of the rest what is not the default."""
    default = TextTemplate("", "", "")
    values = {name: getattr(template, name) for name in _TEMPLATE}
    always = _TEXTS | {"strip"}
    kept = {k: v for k, v in values.items() if k in always or v != getattr(default, k)}
    return {k: list(v) if k == "slot" else v for k, v in kept.items()}


def _check(file: Path, stated: dict[str, Any]) -> None:
    """Raise ModelError for a newer format, and for the first value of the wrong kind."""
    for name, (wanted, fits) in _KINDS.items():
        if name in stated and not fits(stated[name]):
            raise ModelError(f"{name} in {file} must be {wanted}: got {stated[name]!r}")
        if name == "format" and stated.get(name, FORMAT) > FORMAT:
            raise ModelError(
                f"{file} has format {stated[name]}, and this version reads up to format {FORMAT}: "
                "pip install --upgrade rerank-adapters"
            )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_template(value: object) -> bool:
    """Whether it is an object of the template's texts; all else in it may be left out."""
    if not isinstance(value, dict) or not value.keys() >= _TEXTS:
        return False
    if not all(isinstance(part, _TEMPLATE.get(name, ())) for name, part in value.items()):
        return False
    slot = value.get("slot", ["", ""])
    texts = len(slot) == 2 and all(isinstance(text, str) for text in slot)
    return texts and value.get("slot_in", "prefix") in _TEXTS


def _is_exits(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("heads"), str):
        return False
    layers = value.get("layers")
    counts = isinstance(layers, list) and bool(layers) and all(map(_is_count, layers))
    return counts and layers == sorted(set(layers or ()))


_KINDS = {
    "format": ("an int of at least 1", _is_count),
    "labels": ("an int of at least 1", _is_count),
    "activation": ("a string", lambda value: isinstance(value, str)),
    "causal": ("true or false", lambda value: isinstance(value, bool)),
    "prompt": ("a string or null", lambda value: value is None or isinstance(value, str)),
    "template": (
        "null or an object of the strings prefix, middle, suffix and the bool strip",
        lambda value: value is None or _is_template(value),
    ),
    "special_tokens": (
        '"as_text" or "as_tokens"',
        lambda value: value in ("as_text", "as_tokens"),
    ),
    "position_limit": (
        "an int of at least 1 or null",
        lambda value: value is None or _is_count(value),
    ),
    "label": (
        "an int of at least 0 or null",
        lambda value: value is None or value == 0 or _is_count(value),
    ),
    "scale": (
        "a number above 0",
        lambda value: isinstance(value, int | float) and value > 0,
    ),
    "weights": ("a string", lambda value: isinstance(value, str)),
    "exits": ("an object of ascending layers and the name of the heads' file", _is_exits),
}
"""What each key must be; the format comes first, since a newer one may change the others."""
