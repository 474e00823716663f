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
from rerank_adapters.published import PUBLISHED

PAGE = Path(__file__).parents[1] / ".docs" / "compatibility.md"

Gaps = Mapping[str, tuple[str, str]]
"""Replica → the largest gaps of torch and of ONNX."""


@dataclass(frozen=True)
class Row:
    """Checkpoints of one kind, by id or by pattern, and how they are scored.

    replica   what is measured
    tokens    the limit in their files, where no publisher states one
    """

    checkpoints: tuple[str, ...]
    how: str
    replica: str = ""
    tokens: int | None = None


def _of(owner: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{owner}/{name}" for name in names)


SCORED = (
    Row(
        _of(
            "cross-encoder",
            *(f"ms-marco-{name}-v2" for name in ("TinyBERT-L2", "MiniLM-L2", "MiniLM-L4")),
            *("ms-marco-MiniLM-L6-v2", "ms-marco-MiniLM-L12-v2"),
        ),
        "as stored: the logit",
        "bert",
    ),
    Row(
        _of("cross-encoder", "ms-marco-TinyBERT-L2", "ms-marco-TinyBERT-L4", "ms-marco-TinyBERT-L6")
        + _of("cross-encoder", "stsb-TinyBERT-L4"),
        "as stored: sigmoid",
        "bert",
    ),
    Row(
        (
            *_of("cross-encoder", "ms-marco-electra-base", "qnli-electra-base"),
            "naver/trecdl22-crossencoder-electra",
        ),
        "as stored: sigmoid",
        "electra",
    ),
    Row(
        ("intfloat/simlm-msmarco-reranker",),
        'as stored; its card scores "title: passage" and activation="identity"',
        "electra",
    ),
    Row(("cross-encoder/mmarco-mMiniLMv2-L12-H384-v1",), "as stored", "xlm_roberta", 512),
    Row(("cross-encoder/msmarco-MiniLM-*-en-de",), "as stored", "xlm_roberta", 512),
    Row(
        (
            *_of("BAAI", "bge-reranker-base", "bge-reranker-large"),
            "maidalun1020/bce-reranker-base_v1",
        ),
        "as stored: sigmoid",
        "xlm_roberta",
        512,
    ),
    Row(("BAAI/bge-reranker-v2-m3",), "as stored: sigmoid", "xlm_roberta", 8192),
    Row(
        _of("cross-encoder", "stsb-*roberta*", "quora-*roberta*", "qnli-distilroberta-base"),
        "as stored: sigmoid",
        "roberta",
    ),
    Row(
        (
            *_of(
                "mixedbread-ai",
                *(f"mxbai-rerank-{size}-v1" for size in ("xsmall", "base", "large")),
            ),
            "naver/trecdl22-crossencoder-debertav3",
        ),
        "as stored: sigmoid",
        "deberta_v2",
    ),
    Row(("Alibaba-NLP/gte-reranker-modernbert-base",), "as stored: sigmoid", "modernbert", 8192),
    Row(
        (
            *("ibm-granite/granite-embedding-reranker-english-r2", "cl-nagoya/ruri-v3-reranker-*"),
            "hotchpotch/japanese-reranker-xsmall-v2",
        ),
        "as stored",
        "modernbert",
    ),
    Row(("cross-encoder/ettin-reranker-*-v1",), "its modules", "modular_bert", 7999),
    Row(
        ("castorini/monobert-*", "amberoad/bert-multilingual-*"),
        "two labels: softmax[1]",
        "bert_two_labels",
    ),
    Row(
        (*_of("Qwen", *(f"Qwen3-Reranker-{size}" for size in ("0.6B", "4B", "8B"))),),
        "its modules, in revisions that have modules.json",
        "qwen3",
    ),
    Row(
        (
            *_of("mixedbread-ai", "mxbai-rerank-base-v2", "mxbai-rerank-large-v2"),
            "zeroentropy/zerank-2",
        ),
        "its modules, in revisions that have modules.json",
        "qwen3",
    ),
)

TOLD = (
    Row(("cross-encoder/nli-*",), 'label="entailment", or another of its labels'),
    Row(("nboost/pt-*",), "config.json names no class: the head is found in the weights"),
    Row(("ContextualAI/ctxl-rerank-v2-*",), "its modules; its template writes the document first"),
    Row(
        _of("jinaai", "jina-reranker-v1-tiny-en", "jina-reranker-v1-turbo-en"),
        "torch with trust_remote_code=True, for code of its own; its ONNX file without",
    ),
    Row(
        ("jinaai/jina-reranker-v2-base-multilingual",),
        "torch with trust_remote_code=True, for code of its own; its ONNX file without",
        tokens=1024,
    ),
    Row(
        ("Alibaba-NLP/gte-multilingual-reranker-base",),
        "trust_remote_code=True, which fetches the repository that its code is in",
    ),
    Row(
        ("michaelfeil/*-seq",),
        "as stored; without a pad token in config.json the tokenizer's",
    ),
    Row(
        ("sdadas/polish-reranker-*", "radlab/polish-cross-encoder"),
        "by tokenizer.json, with which tokenizer_config.json disagrees",
    ),
    Row(("cross-encoder-testing/*-tanh-*",), "Tanh, as stored"),
    Row(
        ("onnx-community/*", "Xenova/*"),
        "their ONNX files, judged when loaded: one without a head is refused",
    ),
)
"""Kinds that tests score, of which no replica is measured here."""

REFUSED = {
    "BAAI/bge-reranker-v2-minicpm-layerwise": "LayerWiseMiniCPMForCausalLM",
    "BAAI/bge-reranker-v2.5-gemma2-lightweight": "CostWiseGemmaForCausalLM",
    "jinaai/jina-reranker-v3": "JinaForRanking",
    "Qwen/Qwen3-VL-Reranker-*": "Qwen3VLForConditionalGeneration",
    "jinaai/jina-reranker-m0": "Qwen2VLForConditionalGeneration",
    "castorini/monot5-*": "T5ForConditionalGeneration",
    "KaLM-Reranker": "T5ForConditionalGeneration",
}
"""Checkpoint → the class that its config.json states."""

INTRO = """\
# Which rerankers are scored, and how

Written by `python -m tests.compatibility`. Each gap is the largest difference of a logit between
this library and sentence-transformers on a small random replica of that architecture and tokenizer,
not on the checkpoint itself. Prompt and activation are the checkpoint's own unless a row says
otherwise. Weights need the extra `torch`; an ONNX file, its publisher's or one that
`rerank-adapters export` writes, needs none. Tokens (of a pair) and licences are what publishers
state, as `rerank-adapters models` lists it with sources; tokens also what the files say. Where a
cell is empty nobody said it where we could read it: the card decides.
"""

_SAID = {one.id: one for one in PUBLISHED}


def _facts(name: str, tokens: int | None = None) -> tuple[str, str]:
    """Return the tokens of a pair and the licence, "" for what nobody states."""
    one = _SAID.get(name)
    tokens = (one and one.max_length) or tokens
    return f"{tokens:,}" if tokens else "", (one and one.licence) or ""


def render(gaps: Gaps) -> str:
    """The page with *gaps* in it."""
    lines = [INTRO, "## As their files say", ""]
    lines += _table(
        ("checkpoint", "how", "tokens", "licence", "replica", "torch", "ONNX"),
        [
            (name, it.how, *_facts(name, it.tokens), it.replica, *gaps[it.replica])
            for it in SCORED
            for name in it.checkpoints
        ],
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
        lines += [f"{entry.architecture}: {answers}{scale}", ""]
        lines += _table(
            ("checkpoint", "tokens", "licence"), [(name, *_facts(name)) for name in entry.ids]
        )
        lines += ["```text", *_shown(frame.template), "```", ""]
    lines += ["## With an argument, or in another way", ""]
    lines += _table(
        ("checkpoint", "how", "tokens", "licence"),
        [(name, it.how, *_facts(name, it.tokens)) for it in TOLD for name in it.checkpoints],
    )
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
    row = re.compile(r"^(?:\|[^|]*){2,4}\| (\w+) \| ([\d.e-]+) \| ([\d.e-]+) \|$", re.MULTILINE)
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
    rows = sum(len(it.checkpoints) for it in (*SCORED, *TOLD))
    print(f"{PAGE.name}: {rows} rows, {len(KNOWN)} known ids, {len(REFUSED)} refused")
