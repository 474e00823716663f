"""The trained model as an ordinary Hugging Face folder."""

import copy
import json
from pathlib import Path

import torch
from calibration import Fit
from model import MAX_LENGTH, base_folder
from transformers import BertForSequenceClassification


def save_model(model: BertForSequenceClassification, folder: Path, fit: Fit) -> None:
    """Weights with the calibration folded into the classifier, config, tokenizer files."""
    model = copy.deepcopy(model).cpu().float()
    with torch.no_grad():
        model.classifier.weight.mul_(fit[0])
        model.classifier.bias.mul_(fit[0]).add_(fit[1])
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # save_pretrained lets its owner alone read it
    write_config(folder)
    write_tokenizer(folder)


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
    for stale in ("max_length", "pad_to_multiple_of", "pad_token_type_id", "padding_side", "stride",
                  "truncation_side", "truncation_strategy"):  # fmt: skip
        config.pop(stale, None)
    config["model_max_length"] = MAX_LENGTH
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("vocab.txt", "special_tokens_map.json"):
        (folder / name).write_bytes((base / name).read_bytes())
