"""The names of the tiny checkpoints, away from what makes them: to collect takes no torch."""

from __future__ import annotations

KINDS: tuple[str, ...] = (
    "bert",
    "roberta",
    "xlm_roberta",
    "electra",
    "distilbert",
    "modernbert",
    "deberta_v2",
    "mpnet",
    "bert_two_labels",
    "bert_128",
    "qwen3",
    "modular_bert",
    "bert_half",
)
