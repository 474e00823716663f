"""Small checkpoints in the shapes of rerankers people use: copies, and decoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .checkpoints import _qwen_tokenizer, build

PLAIN_CHAT = (
    "{% for message in messages %}{% if message.role in ['system', 'user', 'assistant'] %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
"""The chat template of a language model: it leaves out the roles it does not know."""

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def edit_json(file: Path, **values: Any) -> None:
    """Set *values* in a JSON file, made where it is not there; None takes a key out."""
    content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    content = {**content, **values}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), "utf-8")


def copy_of(
    kind: str,
    folder: Path,
    *,
    weights: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] = lambda it: it,
    **config: Any,
) -> Path:
    """A copy of the tiny checkpoint *kind* whose weights and config.json are edited."""
    shutil.copytree(build(kind), folder)
    file = folder / "model.safetensors"
    kept = {name: value.contiguous() for name, value in weights(load_file(file)).items()}
    save_file(kept, file, metadata={"format": "pt"})
    edit_json(folder / "config.json", **config)
    return folder


def save_decoder(
    folder: Path,
    model_class: type[PreTrainedModel] = Qwen3ForCausalLM,
    config_class: type[Any] = Qwen3Config,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    chat: str | None = PLAIN_CHAT,
    labels: int | None = None,
    **config: Any,
) -> None:
    """Save a decoder with random weights, as transformers does; no modules.json."""
    tokenizer = tokenizer or _qwen_tokenizer()
    tokenizer.chat_template = chat
    made = config_class(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **({} if labels is None else {"num_labels": labels}),
        **{**SIZES, **config},
    )
    with torch.random.fork_rng():
        torch.manual_seed(20261128)
        model_class(made).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


_SHOUTING = """
from sentence_transformers.base.modules import Transformer


class Shouting(Transformer):
    def preprocess(self, inputs, *args, **kwargs):
        loud = [[query, document.upper()] for query, document in inputs]
        return super().preprocess(loud, *args, **kwargs)
"""


def shouting(kind: str, folder: Path) -> Path:
    """The tiny checkpoint *kind* whose own code writes each document in capitals."""
    copy_of(kind, folder)
    file = folder / "modules.json"
    modules = json.loads(file.read_text())
    modules[0]["type"] = "shouting.Shouting"
    file.write_text(json.dumps(modules))
    (folder / "shouting.py").write_text(_SHOUTING)
    return folder
