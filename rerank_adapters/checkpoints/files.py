"""What a checkpoint's files say, read as sentence-transformers reads them; never its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import ModelError
from .json import NO_LIMIT, read_json
from .links import inside
from .manifest import ABSENT, Manifest
from .refusals import refusal

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
    """A checkpoint's files, parsed. Files that are absent are empty.

    config     config.json
    modules    modules.json of a CrossEncoder, () for any other kind of model
    settings   config_sentence_transformers.json, empty without modules
    sentence   sentence_bert_config.json, empty where there is no modules.json of any kind
    tokenizer  tokenizer_config.json, completed from special_tokens_map.json
    manifest   rerank_adapters.json, which an export leaves: it answers before all others
    embedding  whether modules.json is that of an embedding model
    """

    folder: Path
    config: dict[str, Any]
    modules: tuple[Module, ...]
    settings: dict[str, Any]
    sentence: dict[str, Any]
    tokenizer: dict[str, Any]
    manifest: Manifest
    embedding: bool = False

    @classmethod
    def read(cls, folder: Path | str) -> Checkpoint:
        """Read the files of *folder*; ModelError where one is damaged or config.json is missing."""
        folder = Path(folder)
        config = read_json(folder / "config.json", {})
        if not config:
            raise ModelError(f"{folder / 'config.json'} is missing or empty: it names the model")
        settings = read_json(folder / "config_sentence_transformers.json", {})
        stored = (folder / "modules.json").is_file()
        entries = read_json(folder / "modules.json", [])
        # sentence-transformers builds other kinds of model anew, and forgets what they were.
        if settings.get("model_type") != "CrossEncoder":
            entries = []
        special = read_json(folder / "special_tokens_map.json", {})
        return cls(
            folder=folder,
            config=config,
            modules=tuple(_module(folder, entry) for entry in entries),
            settings=settings if entries else {},
            sentence=read_json(folder / "sentence_bert_config.json", {}) if stored else {},
            tokenizer={**special, **read_json(folder / "tokenizer_config.json", {})},
            manifest=Manifest.read(folder) or Manifest(),
            embedding=stored and not entries,
        )

    @property
    def transformer(self) -> dict[str, Any]:
        """What sentence_bert_config.json says of a CrossEncoder's first module."""
        return self.sentence if self.modules else {}

    @property
    def architectures(self) -> tuple[str, ...]:
        """Class names of the model, () where none is stated. ModelError where it is no list."""
        stated = self.config.get("architectures") or []
        if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
            raise ModelError(
                f"architectures in {self.folder / 'config.json'} must be a list of class names: "
                f"got {stated!r:.80}"
            )
        return tuple(stated)

    @property
    def code(self) -> dict[str, str]:
        """The classes that code of a repository brings: `auto_map`, as "file.Class" by its use.

        Code of another repository is "owner/name--file.Class".
        """
        stated = self.config.get("auto_map") or {}
        return {use: path for use, path in stated.items() if isinstance(path, str)}

    @property
    def tokenizer_code(self) -> list[str]:
        """The classes that code of a repository brings for the tokenizer: in Python, and in Rust.

        As in `code`.
        """
        stated = self.tokenizer.get("auto_map") or []
        uses = stated.values() if isinstance(stated, dict) else [stated]
        paths = [path for use in uses for path in (use if isinstance(use, list) else [use])]
        return [path for path in paths if isinstance(path, str)]

    @property
    def code_elsewhere(self) -> dict[str, set[str]]:
        """The files of code in other repositories, by "owner/name": the model's and tokenizer's."""
        files: dict[str, set[str]] = {}
        for path in [*self.code.values(), *self.tokenizer_code]:
            repository, found, module = path.rpartition("--")
            if found:
                files.setdefault(repository, set()).add(f"{module.partition('.')[0]}.py")
        return files

    @property
    def causal(self) -> bool:
        """Whether the model generates text, and so is read at its last token.

        The first architecture decides, as in sentence-transformers.
        """
        if self.manifest.causal is not ABSENT:
            return self.manifest.causal
        named = any(name.endswith("ForCausalLM") for name in self.architectures[:1])
        return named and not self.embedding

    @property
    def classifies(self) -> bool:
        """Whether a class named *ForSequenceClassification, a module or an export gives scores."""
        named = any(name.endswith("ForSequenceClassification") for name in self.architectures)
        # Files of before 2020 state no class; what is loaded says whether the head is there.
        unnamed = not self.architectures and not self.embedding
        return named or unnamed or bool(self.modules) or self.manifest.labels is not ABSENT

    @property
    def reranks(self) -> bool:
        """Whether anything in it scores pairs; a head would have to be made up for the rest."""
        if self.manifest.labels is not ABSENT:
            return True
        return not self.refusal and (self.classifies or self.causal)

    @property
    def refusal(self) -> str:
        """Why a kind of model that is known is not scored, and what would help; else ""."""
        return refusal(self.architectures, self.config)

    def no_reranker(self) -> ModelError:
        """Return what to raise where it does not."""
        if self.refusal:
            named = ", ".join(self.architectures)
            return ModelError(f"{self.folder} ({named}) cannot be scored: {self.refusal}")
        if self.embedding:
            return ModelError(
                f"expected a reranker: {self.folder} is an embedding model, as its modules.json "
                "says, and what one would say of a pair means nothing"
            )
        return ModelError(
            "expected a reranker (*ForSequenceClassification, *ForCausalLM, or the modules.json of "
            f"a CrossEncoder): {self.folder} has architectures {list(self.architectures)}"
        )

    @property
    def default_prompt(self) -> str | None:
        """The prompt stored as the default, None where there is none."""
        if self.manifest.prompt is not ABSENT:
            return self.manifest.prompt
        name = self.settings.get("default_prompt_name")
        prompt = self.settings.get("prompts", {}).get(name)
        return None if prompt is None else str(prompt)

    @property
    def position_limit(self) -> int | None:
        """The most tokens the model has positions for; None where it states no bound."""
        if self.manifest.position_limit is not ABSENT:
            return self.manifest.position_limit
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
    def rows(self) -> int:
        """How many tokens the network has embeddings for; NO_LIMIT where config.json is silent."""
        text = self.config.get("text_config") or {}
        stated = self.config.get("vocab_size", text.get("vocab_size"))
        return stated if _is_id(stated, NO_LIMIT) and stated else NO_LIMIT

    def pad_id(self, ids: Callable[[str], int | None], padding: object = None) -> int:
        """The token that pads, one that the network has a row for; *ids* tells that of a token.

        *padding* is the id in tokenizer.json. Some checkpoints name a token that was added and
        never trained, or -1: then it is what ends a text.
        """
        pad, end = (_content(self.tokenizer.get(f"{name}_token")) for name in ("pad", "eos"))
        stated = (
            None if pad is None else ids(pad),
            padding,
            self.config.get("pad_token_id"),
            self.config.get("eos_token_id"),
            None if end is None else ids(end),
        )
        return next((it for it in stated if _is_id(it, self.rows)), 0)

    @property
    def labels(self) -> int:
        """How many numbers the model gives for a pair, before its activation."""
        if self.manifest.labels is not ABSENT:
            return self.manifest.labels
        for module in reversed(self.modules):
            if module.name == "Dense" and module.config.get("module_output_name") == "scores":
                return int(module.config["out_features"])
            if module.name == "LogitScore":
                return 1
        if not self.modules and self.causal:
            return 1
        return _labels(self.config)


def _is_id(value: object, rows: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _labels(config: dict[str, Any]) -> int:
    names = config.get("id2label")
    if names:
        return len(names)
    return int(config.get("num_labels", 2))  # transformers' own default


def _module(folder: Path, entry: dict[str, Any]) -> Module:
    name = str(entry.get("type", "")).rpartition(".")[2]
    path = str(entry.get("path", ""))
    if not path:
        return Module(name, {})
    place = inside(folder, path, said_in=f"path in {folder / 'modules.json'}")
    return Module(name, read_json(place / "config.json", {}))
