"""What a checkpoint's files say, read as sentence-transformers reads them; never its name.

An exported folder also holds `rerank_adapters.json`, which answers what the other files cannot
answer without torch, transformers or jinja2:

    {
      "labels": 1,                    columns of the logits the ONNX graph returns
      "activation": "sigmoid",        "sigmoid" | "identity" | "softmax": what "default" means
      "template": {                   null where pairs go through the tokenizer's own frame
        "prefix": "...", "middle": "...", "suffix": "...", "strip": false
      },
      "prompt": "...",                the prompt written into the template, or before each query
      "position_limit": 512           most tokens of a pair, or null
    }

Each key is optional: what is absent is read from the checkpoint's own files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..tokenization import NO_LIMIT, read_json

EXPORTED = "rerank_adapters.json"

# Their positions start at padding_idx + 1, so that many rows of the table are never used.
_OFFSET_POSITIONS = {
    *("camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of modules.json: the last part of its class name, and its own config.json."""

    name: str
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's files, parsed. Files that are absent are empty."""

    folder: Path
    config: dict[str, Any]
    modules: tuple[Module, ...]
    settings: dict[str, Any]  # config_sentence_transformers.json
    transformer: dict[str, Any]  # sentence_bert_config.json
    exported: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """The files of *folder*; ModelError where one is damaged or config.json is missing."""
        config = read_json(folder / "config.json", {})
        if not config:
            raise ModelError(f"{folder / 'config.json'} is missing or empty: it names the model")
        settings = read_json(folder / "config_sentence_transformers.json", {})
        entries = read_json(folder / "modules.json", [])
        # sentence-transformers builds other kinds of model anew, and forgets what they were.
        if settings.get("model_type") != "CrossEncoder":
            entries = []
        return cls(
            folder=folder,
            config=config,
            modules=tuple(_module(folder, entry) for entry in entries),
            settings=settings if entries else {},
            transformer=read_json(folder / "sentence_bert_config.json", {}) if entries else {},
            exported=read_json(folder / EXPORTED, {}),
        )

    @property
    def architectures(self) -> tuple[str, ...]:
        """Class names of the model, () where none is stated."""
        return tuple(self.config.get("architectures") or ())

    @property
    def causal(self) -> bool:
        """Whether the model generates text, and so is read at its last token."""
        return any(name.endswith("ForCausalLM") for name in self.architectures[:1])

    @property
    def classifies(self) -> bool:
        """Whether a class named *ForSequenceClassification, a module or an export gives scores."""
        named = any(name.endswith("ForSequenceClassification") for name in self.architectures)
        return named or bool(self.modules) or "labels" in self.exported

    @property
    def reranks(self) -> bool:
        """Whether anything in it scores pairs; whoever loads the rest makes up a head."""
        return self.classifies or self.causal

    def no_reranker(self) -> ModelError:
        """What to raise where it does not."""
        return ModelError(
            "expected a reranker (*ForSequenceClassification, *ForCausalLM, or the modules.json of "
            f"a CrossEncoder): {self.folder} has architectures {list(self.architectures)}"
        )

    @property
    def default_prompt(self) -> str | None:
        """The prompt stored as the default, None where there is none."""
        if "prompt" in self.exported:
            stored = self.exported["prompt"]
            return None if stored is None else str(stored)
        name = self.settings.get("default_prompt_name")
        prompt = self.settings.get("prompts", {}).get(name)
        return None if prompt is None else str(prompt)

    @property
    def position_limit(self) -> int | None:
        """The most tokens the model has positions for; None where it states no bound."""
        if "position_limit" in self.exported:
            limit = self.exported["position_limit"]
            return None if limit is None else int(limit)
        text = self.config.get("text_config") or {}
        stated = (
            source.get(key)
            for source in (self.config, text)
            for key in ("max_position_embeddings", "n_positions")
        )
        positions = next((int(value) for value in stated if value is not None), -1)
        if positions < 0 or positions >= NO_LIMIT:  # XLNet writes -1 for "any"
            return None
        return positions - self._unused_positions

    @property
    def _unused_positions(self) -> int:
        kind = self.config.get("model_type")
        if kind not in _OFFSET_POSITIONS:
            return 0
        padding = 1 if kind == "mpnet" else self.config.get("pad_token_id", 1)
        return int(padding) + 1

    @property
    def labels(self) -> int:
        """How many numbers the model gives for a pair, before its activation."""
        if "labels" in self.exported:
            return int(self.exported["labels"])
        for module in reversed(self.modules):
            if module.name == "Dense" and module.config.get("module_output_name") == "scores":
                return int(module.config["out_features"])
            if module.name == "LogitScore":
                return 1
        if not self.modules and self.causal:
            return 1
        return _labels(self.config)


def _labels(config: dict[str, Any]) -> int:
    names = config.get("id2label")
    if names:
        return len(names)
    return int(config.get("num_labels", 2))  # transformers' own default


def _module(folder: Path, entry: dict[str, Any]) -> Module:
    name = str(entry.get("type", "")).rpartition(".")[2]
    path = str(entry.get("path", ""))
    return Module(name, read_json(folder / path / "config.json", {}) if path else {})
