"""What a model's JSON files may not say: paths that lead out of its folder, code to be run.

A folder is data. Paths in its files stay inside it; classes that they name come from
sentence-transformers and torch.nn, unless trust_remote_code=True was said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .json import read_json
from .links import inside

MODULES = {
    *("Transformer", "Pooling", "Dense", "LogitScore", "Normalize", "Dropout", "LayerNorm"),
    *("WeightedLayerPooling",),
}
"""Classes of sentence-transformers that are built from numbers; others import what a file names."""

_OWN_CLASS = re.compile(r"sentence_transformers(\.\w+)+")
_TORCH_CLASS = re.compile(r"torch\.nn(\.\w+)+")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PLAIN = re.compile(r"[\w.:+-]*")

_ARGUMENTS = tuple(
    f"{part}_{kind}"
    for part in ("model", "tokenizer", "processor", "config")
    for kind in ("args", "kwargs")
)
_STEERING = {
    *("weights_only", "use_safetensors", "trust_remote_code", "allow_all_kernels", "use_kernels"),
    *("subfolder", "cache_dir", "gguf_file", "state_dict", "config", "adapter_kwargs", "token"),
    *("tokenizer_file", "vocab_file", "merges_file", "code_revision", "kernel_config", "variant"),
    *("auto_map", "proxies", "key_mapping", "local_files_only", "force_download", "revision"),
}
"""Arguments of `from_pretrained` that choose files, or whether pickled weights are read safely."""


def check_files(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raise ModelError where the JSON files of *folder* name files elsewhere, or code.

    To be asked before sentence-transformers or transformers is handed a folder: some versions of
    them run the code of any folder that is here, and read any path. Sources: sentence-transformers
    5.4 to 5.6, `import_module_class`; transformers, `from_pretrained`'s arguments.
    """
    for name, value in _paths(folder):
        inside(folder, value, said_in=name)
    if trust_remote_code:
        return
    for name, value in _classes(folder):
        if not _TORCH_CLASS.fullmatch(value):
            raise _code(name, value)
    for entry in read_json(folder / "modules.json", []):
        value = str(entry.get("type", "")) if isinstance(entry, dict) else ""
        if not _OWN_CLASS.fullmatch(value) or value.rpartition(".")[2] not in MODULES:
            raise _code(f"type in {folder / 'modules.json'}", value)
    for file in folder.glob("sentence_*_config.json"):
        _check_arguments(file, read_json(file, {}))
    _check_config(folder / "config.json", read_json(folder / "config.json", {}))
    _check_base(folder / "adapter_config.json", read_json(folder / "adapter_config.json", {}))


def _paths(folder: Path) -> Iterator[tuple[str, str]]:
    """(where it stands, the path) of every file that a JSON file of *folder* names."""
    modules, settings = folder / "modules.json", folder / "tokenizer_config.json"
    for entry in read_json(modules, []):
        yield f"path in {modules}", str(entry.get("path") or "") if isinstance(entry, dict) else ""
    for file in folder.rglob("*.index.json"):
        shards = read_json(file, {}).get("weight_map")
        names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
        for shard in sorted(names):
            yield f"weight_map in {file}", str(file.parent.relative_to(folder) / shard)
    for name, value in read_json(settings, {}).items():
        several = value if name == "fast_tokenizer_files" and isinstance(value, list) else [value]
        if name.endswith(("_file", "_files")):
            yield from ((f"{name} in {settings}", one) for one in several if isinstance(one, str))
    weights = read_json(folder / "config.json", {}).get("transformers_weights")
    if weights is not None:
        yield f"transformers_weights in {folder / 'config.json'}", str(weights)


def _classes(folder: Path) -> Iterator[tuple[str, str]]:
    """(where it stands, the name) of every function of torch that a file asks to be called."""
    config = read_json(folder / "config.json", {})
    own = config.get("sentence_transformers")
    stated = {
        "activation_fn": own.get("activation_fn") if isinstance(own, dict) else None,
        "sbert_ce_default_activation_function": config.get("sbert_ce_default_activation_function"),
    }
    places = [(folder / "config.json", name, value) for name, value in stated.items()]
    file = folder / "config_sentence_transformers.json"
    places.append((file, "activation_fn", read_json(file, {}).get("activation_fn")))
    name = "activation_function"
    places += [(file, name, read_json(file, {}).get(name)) for file in folder.glob("*/config.json")]
    for file, name, value in places:
        if isinstance(value, str) and value.startswith("torch."):
            yield f"{name} in {file}", value


def _check_arguments(file: Path, settings: Mapping[str, Any]) -> None:
    """Refuse arguments stored for `from_pretrained` that choose files or how they are read."""
    other = settings.get("tokenizer_name_or_path")
    if other is not None:
        raise ModelError(_untrusted(f"tokenizer_name_or_path in {file}", other))
    for name in _ARGUMENTS:
        stored = settings.get(name)
        for key, value in stored.items() if isinstance(stored, dict) else ():
            plain = not isinstance(value, str) or (_PLAIN.fullmatch(value) and ".." not in value)
            if key in _STEERING or not plain:
                raise ModelError(_untrusted(f"{name}.{key} in {file}", value))


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse an attention that is fetched from a hub, and a model that stands elsewhere."""
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in str(config.get(name)):
            raise ModelError(_untrusted(f"{name} in {file}", config[name]))
    _check_base(file, config)


def _check_base(file: Path, config: Mapping[str, Any]) -> None:
    base = config.get("base_model_name_or_path")
    if base is None:
        return
    if not isinstance(base, str) or not _HUB_ID.fullmatch(base) or ".." in base:
        raise ModelError(_untrusted(f"base_model_name_or_path in {file}", base))


def _code(name: str, value: str) -> ModelError:
    return ModelError(
        f"{name} must be a class of sentence-transformers or torch.nn: got {value!r}, which would "
        "run code; pass trust_remote_code=True if you have read it"
    )


def _untrusted(name: str, value: object) -> str:
    return (
        f"{name} must not choose files or how they are read: got {value!r}; pass "
        "trust_remote_code=True if you trust the model"
    )
