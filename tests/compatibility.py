"""Write .docs/compatibility.md: `python -m tests.compatibility` measures, and writes it anew.

Gaps are of small random replicas (tests/checkpoints.py) against sentence-transformers, over PAIRS:
the largest difference of a logit. What a row says of frames and refusals is read from the library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rerank_adapters.checkpoints.refusals import refusal
from rerank_adapters.loading.catalogue import CATALOGUE, KNOWN

PAGE = Path(__file__).parents[1] / ".docs" / "compatibility.md"

Gaps = Mapping[str, tuple[str, str]]
"""Replica → the largest gaps of torch and of ONNX."""


@dataclass(frozen=True)
class Row:
    """Checkpoints of one kind, and how they are scored; `replica` is what is measured."""

    checkpoints: str
    how: str
    replica: str = ""


SCORED = (
    Row("cross-encoder/ms-marco-*, stsb-TinyBERT-*", "as stored", "bert"),
    Row("cross-encoder/*-electra-base, naver/trecdl22-*", "as stored", "electra"),
    Row("BAAI/bge-reranker-base, -large, -v2-m3, maidalun1020/bce-*", "as stored", "xlm_roberta"),
    Row("cross-encoder/mmarco-mMiniLMv2-*", "as stored", "xlm_roberta"),
    Row("cross-encoder/stsb-*roberta*, quora-*roberta*", "as stored", "roberta"),
    Row("mixedbread-ai/mxbai-rerank-*-v1, naver debertav3", "as stored", "deberta_v2"),
    Row("Alibaba-NLP/gte-reranker-modernbert-base, cl-nagoya/ruri-v3", "as stored", "modernbert"),
    Row("cross-encoder/ettin-reranker-*-v1", "its modules", "modular_bert"),
    Row("castorini/monobert-*, amberoad/bert-*", "two labels: softmax[1]", "bert_two_labels"),
    Row("Qwen3-Reranker, zerank-2, mxbai v2 with modules.json", "its modules", "qwen3"),
)

TOLD = (
    Row("cross-encoder/nli-*", 'label="entailment", or another of its labels'),
    Row("nboost/pt-*", "config.json names no class: the head is found in the weights"),
    Row("ContextualAI/ctxl-rerank-v2-*", "its modules; its template writes the document first"),
    Row("jinaai/jina-reranker-v1-*, v2", "trust_remote_code=True for torch; their ONNX without"),
    Row("Alibaba-NLP/gte-multilingual-*", "trust_remote_code=True fetches the code's repository"),
)
"""Kinds that tests score, of which no replica is measured here."""

REFUSED = {
    "BAAI/bge-reranker-v2-minicpm-layerwise": "LayerWiseMiniCPMForCausalLM",
    "BAAI/bge-reranker-v2.5-gemma2-lightweight": "CostWiseGemmaForCausalLM",
    "jinaai/jina-reranker-v3": "JinaForRanking",
    "Qwen/Qwen3-VL-Reranker-*, jinaai/jina-reranker-m0": "Qwen3VLForConditionalGeneration",
    "castorini/monot5-*": "T5ForConditionalGeneration",
}
"""Checkpoint → the class that its config.json states."""

INTRO = """\
# Which rerankers are scored, and how

Written by `python -m tests.compatibility`. Each gap is the largest difference of a logit between
this library and sentence-transformers on a small random replica of that architecture and tokenizer,
not on the checkpoint itself. Length, prompt and activation are the checkpoint's own unless a row
says otherwise; licences are on each model's card.
"""


def render(gaps: Gaps) -> str:
    """The page with *gaps* in it."""
    lines = [INTRO, "## As their files say", ""]
    lines += _table(
        ("checkpoints", "how", "replica", "torch", "ONNX"),
        [(it.checkpoints, it.how, it.replica, *gaps[it.replica]) for it in SCORED],
    )
    lines += ["## By their cards, for these hub ids and classes", ""]
    lines += [
        "The frame, the answers and the default prompt are in the catalogue; a folder of one's own",
        "takes them as `template=`, `answers=` and `prompt=`. At `{|}` tokens are joined.",
        "",
    ]
    for entry in CATALOGUE:
        frame = entry.frame
        answers = "its head's logit" if frame.answers is None else f"answers {frame.answers}"
        scale = "" if frame.scale == 1 else f", logit × {frame.scale}"
        lines += [f"- {', '.join(entry.ids)} ({entry.architecture}): {answers}{scale}", ""]
        lines += ["  ```text", *(f"  {line}" for line in _shown(frame.template)), "  ```", ""]
    lines += ["## With an argument, or in another way", ""]
    lines += _table(("checkpoints", "how"), [(it.checkpoints, it.how) for it in TOLD])
    lines += ["## Refused, and why", ""]
    lines += _table(
        ("checkpoints", "what the error says"),
        [(name, refusal([kind], {})) for name, kind in REFUSED.items()],
    )
    return "\n".join(lines).rstrip() + "\n"


def _shown(template: str | None) -> list[str]:
    return (template or "").rstrip("\n").split("\n")


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    made = [heads, tuple("---" for _ in heads), *rows]
    return [*(f"| {' | '.join(row)} |" for row in made), ""]


def gaps_in(page: str) -> dict[str, tuple[str, str]]:
    """The gaps that *page* states."""
    row = re.compile(r"^\|[^|]*\|[^|]*\| (\w+) \| ([\d.e-]+) \| ([\d.e-]+) \|$", re.MULTILINE)
    found = row.findall(page)
    return {replica: (torch, onnx) for replica, torch, onnx in found}


def measured() -> dict[str, tuple[str, str]]:
    """The gaps as they are now; takes minutes."""
    from rerank_adapters import Reranker
    from tests.checkpoints import PAIRS, build, oracle
    from tests.exported import exported

    found = {}
    for kind in sorted({row.replica for row in SCORED}):
        expected = oracle(build(kind), PAIRS, activation="identity")
        gaps = []
        for backend, folder in (("torch", build(kind)), ("onnx", exported(kind))):
            options = {"activation": "identity", "special_tokens": "as_tokens", "device": "cpu"}
            with Reranker(str(folder), backend=backend, **options) as reranker:
                gaps.append(f"{abs(reranker.score_pairs(PAIRS) - expected).max():.1e}")
        found[kind] = (gaps[0], gaps[1])
        print(kind, *gaps, flush=True)
    return found


if __name__ == "__main__":
    PAGE.write_text(render(measured()), "utf-8")
    print(f"{PAGE.name}: {len(SCORED)} rows, {len(KNOWN)} known ids, {len(REFUSED)} refused")
