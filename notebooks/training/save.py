"""Weights to start from, and the trained model as an ordinary Hugging Face folder."""

import copy
import json
from pathlib import Path

import numpy as np
import teachers
import torch
from model import MAX_LENGTH, Student, base_folder
from torch import Tensor

from rerank_adapters.checkpoints.tensors import read_tensors
from rerank_adapters.loading import bundled


def starting_weights(carry: Path, name: str) -> dict[str, Tensor]:
    """Those of the bundled model ("shipped") or of all-MiniLM-L6-v2 ("base")."""
    if name == "base":
        with np.load(carry / "base.npz") as arrays:
            return teachers.floats(arrays)
    path = carry / "shipped.safetensors"
    path = path if path.exists() else bundled.folder() / bundled.WEIGHTS
    return {
        k: torch.from_numpy(v.copy()) for k, v in bundled.dequantize(read_tensors(path)).items()
    }


def save_model(student: Student, folder: Path, fit: tuple[float, float]) -> None:
    """Weights with the calibration folded into every head, config, tokenizer files.

    The exit heads stand in a file of their own, `exits.json`: layer → its row and its bias.
    """
    whole = copy.deepcopy(student).cpu().float()
    model = whole.network
    with torch.no_grad():
        model.classifier.weight.mul_(fit[0])
        model.classifier.bias.mul_(fit[0]).add_(fit[1])
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # save_pretrained lets its owner alone read it
    write_config(folder)
    write_tokenizer(folder)
    rows = {
        layer: {
            "weight": (fit[0] * head.weight[0]).tolist(),
            "bias": float(fit[0] * head.bias + fit[1]),
        }
        for layer, head in whole.exits.items()
    }
    (folder / "exits.json").write_text(json.dumps(rows))


def write_config(folder: Path) -> None:
    """Dropout as in the base, and sigmoid as the activation sentence-transformers applies."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.1
    config["id2label"], config["label2id"] = {"0": "relevance"}, {"relevance": 0}
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tokenizer(folder: Path) -> None:
    """The base's files, without its truncation and padding and with the model's true length."""
    base = base_folder()
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["truncation"] = tokenizer["padding"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n")
    config = json.loads((base / "tokenizer_config.json").read_text())
    for stale in (
        "max_length",
        "pad_to_multiple_of",
        "pad_token_type_id",
        "padding_side",
        "stride",
        "truncation_side",
        "truncation_strategy",
    ):
        config.pop(stale, None)
    config["model_max_length"] = MAX_LENGTH
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("vocab.txt", "special_tokens_map.json"):
        (folder / name).write_bytes((base / name).read_bytes())
