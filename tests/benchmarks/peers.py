"""Everybody side by side: the same weights, the same texts, taking turns.

    python -m tests.benchmarks.peers PART [--rounds 5] [--counts 10 50 1000] [--only NAME]

PART is one of "mixed" (10, 50, 1,000 documents of natural length), "full" (the same counts of 512
tokens; 1,000 of them once), "queries" (32 queries of 20 documents), "callers" (64 threads, 10
documents each) and "memory" (peak of a process of its own). On a quiet machine of a few cores each
takes some minutes; run one after the other, nothing beside it. --small tries it on few texts.
With --only these are measured beside the first: 64 callers of everyone in one
process take more than 24 GB.

The model is the bundled one, unpacked and exported into --folder, where the next part finds it,
else into a folder that goes. Neighbours that are not installed are named as absent: `pip install
--target FOLDER --no-deps fastembed==0.9.1 FlashRank rerankers loguru mmh3 py_rust_stemmers
langchain-community`, and PYTHONPATH=FOLDER; openvino and nanotoken likewise. Prints markdown:
medians, so read the ratios. Drift is the largest difference from sentence-transformers' logits; of
those that return sigmoids it is taken of the logit that the sigmoid means. With an early exit most
stop after two, three or four of six layers, with that layer's own score: no drift is told.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerank_adapters import EarlyExit, Reranker
from rerank_adapters.loading import bundled
from tests.benchmarks.texts import QUERY, documents, machine, medians

Score = Callable[[str, Sequence[str]], NDArray[np.float64]]
"""A query and documents to their logits, in the order given."""

PARTS = ("mixed", "full", "queries", "callers", "memory")


def _ours(model: str | None = None, **options: object) -> Callable[[Path], Score]:
    """*model*: in the folder's place, of equal weights."""

    def make(folder: Path) -> Score:
        name = model or str(folder)
        reranker = Reranker(name, activation="identity", device="cpu", **options)

        def score(query: str, texts: Sequence[str]) -> NDArray[np.float64]:
            if "early_exit" not in options:  # with one, `score` reads every document to the end
                return np.asarray(reranker.score(query, texts), np.float64)
            found = {it.index: it.score for it in reranker.rerank(query, texts)}
            return np.array([found[row] for row in range(len(texts))], np.float64)

        score.stats = reranker.stats
        return score

    return make


def _sentence_transformers(batch: int, dtype: str = "float32") -> Callable[[Path], Score]:
    def make(folder: Path) -> Score:
        import torch
        from sentence_transformers import CrossEncoder

        flags = Path("/proc/cpuinfo")
        if dtype == "bfloat16" and "bf16" not in (flags.read_text() if flags.exists() else ""):
            raise NotImplementedError("this CPU has no bfloat16 instructions that can be seen")
        kind = getattr(torch, dtype)
        model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": kind})
        identity = torch.nn.Identity()

        def score(query: str, texts: Sequence[str]) -> NDArray[np.float64]:
            pairs = [(query, text) for text in texts]
            return np.float64(model.predict(pairs, batch_size=batch, activation_fn=identity))

        return score

    return make


def _fastembed(file: str) -> Callable[[Path], Score]:
    def make(folder: Path) -> Score:
        from fastembed.common.model_description import ModelSource
        from fastembed.rerank.cross_encoder import TextCrossEncoder

        name = f"local/{file}"
        TextCrossEncoder.add_custom_model(name, ModelSource(hf="local/none"), model_file=file)
        model = TextCrossEncoder(name, specific_model_path=str(folder), local_files_only=True)
        return lambda query, texts: np.array([*model.rerank(query, list(texts))], np.float64)

    return make


def _flashrank(folder: Path) -> Score:
    from flashrank import Ranker, RerankRequest

    copy = Path(tempfile.mkdtemp()) / "copied"
    shutil.copytree(folder, copy)
    for needed in ("special_tokens_map.json",):
        if not (copy / needed).exists():
            (copy / needed).write_text("{}")
    sys.modules["flashrank.Ranker"].model_file_map["copied"] = "model.onnx"
    ranker = Ranker("copied", cache_dir=str(copy.parent), log_level="ERROR")

    def score(query: str, texts: Sequence[str]) -> NDArray[np.float64]:
        passages = [{"id": row, "text": text} for row, text in enumerate(texts)]
        found = ranker.rerank(RerankRequest(query=query, passages=passages))
        return _logits([(it["id"], it["score"]) for it in found], len(texts))

    return score


def _langchain(folder: Path) -> Score:
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder
    from langchain_core.documents import Document

    model = HuggingFaceCrossEncoder(model_name=str(folder), model_kwargs={"device": "cpu"})
    seen: dict[str, list[float]] = {}
    inner = model.score

    class Kept(HuggingFaceCrossEncoder):
        """The same, and what it scored: the compressor hands no scores on."""

        def score(self, pairs: list[tuple[str, str]]) -> list[float]:
            seen["scores"] = inner(pairs)
            return seen["scores"]

    kept = Kept.model_construct(**model.__dict__)
    chain = CrossEncoderReranker(model=kept, top_n=10**6)

    def score(query: str, texts: Sequence[str]) -> NDArray[np.float64]:
        chain.compress_documents([Document(text) for text in texts], query)
        return _logits(list(enumerate(map(float, seen["scores"]))), len(texts))

    return score


def _llama_index(folder: Path) -> Score:
    from llama_index.core.postprocessor import SentenceTransformerRerank
    from llama_index.core.schema import NodeWithScore, TextNode

    model = SentenceTransformerRerank(model=str(folder), top_n=10**6, device="cpu")

    def score(query: str, texts: Sequence[str]) -> NDArray[np.float64]:
        nodes = [NodeWithScore(node=TextNode(text=it, id_=str(n))) for n, it in enumerate(texts)]
        found = model.postprocess_nodes(nodes, query_str=query)
        return _logits([(int(it.node.node_id), float(it.score)) for it in found], len(texts))

    return score


def _rerankers(folder: Path) -> Score:
    from rerankers import Reranker as Theirs

    model = Theirs(str(folder), model_type="cross-encoder", device="cpu", verbose=0)
    if model is None:
        raise ImportError("rerankers loads no cross-encoder here")

    def score(query: str, texts: Sequence[str]) -> NDArray[np.float64]:
        found = model.rank(query=query, docs=list(texts)).results
        kept = np.zeros(len(texts))
        for it in found:
            kept[int(it.document.doc_id)] = it.score
        return kept

    return score


def _logits(found: list[tuple[int, float]], count: int) -> NDArray[np.float64]:
    """Sigmoids to logits, where they are sigmoids."""
    scores = np.zeros(count)
    for row, score in found:
        scores[row] = score
    if ((scores > 0) & (scores < 1)).all():
        scores = np.log(scores) - np.log1p(-scores)
    return scores


COMPETITORS: dict[str, Callable[[Path], Score]] = {
    "sentence-transformers, its default": _sentence_transformers(32),
    "sentence-transformers, batch 1": _sentence_transformers(1),
    "sentence-transformers, bfloat16": _sentence_transformers(32, "bfloat16"),
    "rerank-adapters, onnx float32": _ours(backend="onnx", dtype="float32"),
    "rerank-adapters, onnx int8": _ours(backend="onnx", dtype="int8"),
    "rerank-adapters, onnx int8, early exit 30+20+5": _ours(
        "default", backend="onnx", dtype="int8", early_exit=EarlyExit((2, 3, 4), (30, 20, 5))
    ),
    "rerank-adapters, onnx int8, early exit 25+10+4": _ours(
        "default", backend="onnx", dtype="int8", early_exit=EarlyExit((2, 3, 4), (25, 10, 4))
    ),
    "rerank-adapters, torch": _ours(backend="torch"),
    "rerank-adapters, openvino": _ours(backend="openvino"),
    "fastembed": _fastembed("model.onnx"),
    "fastembed, int8": _fastembed("model_int8.onnx"),
    "FlashRank": _flashrank,
    "LangChain's CrossEncoderReranker": _langchain,
    "LlamaIndex's SentenceTransformerRerank": _llama_index,
    "rerankers": _rerankers,
}


def made(cache: Path) -> Path:
    """The model's folder in *cache*, with weights and ONNX files of both kinds: one for all."""
    from rerank_adapters.export import export_onnx

    folder = cache / "model"
    if not folder.exists():
        shutil.copytree(bundled.unpack(cache), folder)
    for dtype, file in (("float32", "model.onnx"), ("int8", "model_int8.onnx")):
        if not (folder / file).exists():
            export_onnx(folder, folder, dtype)
    return folder


def loaded(folder: Path, names: Iterable[str]) -> dict[str, Score]:
    """Who of *names* is here; who is not is printed, with the reason."""
    found: dict[str, Score] = {}
    for name in names:
        try:
            score = COMPETITORS[name](folder)
            score(QUERY, ["one text"])
            found[name] = score
        except Exception as error:  # a neighbour of any kind, absent or unwilling
            print(f"- {name} is absent: {type(error).__name__}: {error!s:.150}")
    print(flush=True)
    return found


def table(title: str, runs: dict[str, Callable[[], object]], docs: int, rounds: int) -> None:
    """Print one row for each, beside sentence-transformers' default."""
    seconds = medians(runs, rounds=rounds)
    first = next(iter(seconds.values()))
    print(f"## {title}, median of {rounds}\n")
    print("| | ms | documents/s | x sentence-transformers |\n|---|---:|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {1e3 * value:.0f} | {docs / value:.0f} | {first / value:.1f} |")
    print(flush=True)


def drifts(found: dict[str, Score], texts: list[str]) -> None:
    """Print how far each one's logits are from sentence-transformers', and what ours padded."""
    scores = {name: score(QUERY, texts) for name, score in found.items()}
    first = next(iter(scores.values()))
    print("| | largest drift of a logit | padded / real tokens |\n|---|---:|---:|")
    for name, own in scores.items():
        if "early exit" in name:
            continue
        stats = getattr(found[name], "stats", None)
        padded = f"{1 / (1 - stats()['padding_waste']):.3f}" if stats else "not told"
        print(f"| {name} | {np.abs(own - first).max():.1e} | {padded} |")
    print(flush=True)


def calls(part: str, found: dict[str, Score], counts: list[int], rounds: int) -> None:
    """One call at a time, of so many documents."""
    for count in counts:
        texts = documents(count) if part == "mixed" else full(count)
        if count in (2, 50):
            drifts(found, texts)
        runs = {
            name: (lambda score=score, texts=texts: score(QUERY, texts))
            for name, score in found.items()
        }
        table(f"{count} documents, {part}", runs, count, 1 if count == 1000 else rounds)


def full(count: int) -> list[str]:
    """Documents longer than 512 tokens."""
    words = " ".join(documents(50)).split()
    return [" ".join((words[row * 7 :] + words)[:600]) for row in range(count)]


def many(part: str, found: dict[str, Score], *, small: bool, rounds: int) -> None:
    """32 queries one after the other, or 64 callers at once."""
    queries, each = (32, 20) if part == "queries" else (64, 10)
    queries, each = (4, 3) if small else (queries, each)
    asked = [(f"{QUERY} {n}", documents(each, seed=n)) for n in range(queries)]

    def run(score: Score) -> None:
        threads = 1 if part == "queries" else queries
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda it: score(*it), asked))

    runs = {name: (lambda score=score: run(score)) for name, score in found.items()}
    table(f"{queries} {part} of {each} documents", runs, queries * each, rounds)


def memory(folder: Path, *, small: bool) -> None:
    """Peak memory of a process that loads one and scores, by itself."""
    print("| | peak MB | load and first call, s |\n|---|---:|---:|")
    for name in COMPETITORS:
        command = [sys.executable, "-m", "tests.benchmarks.peers", "memory", "--only", name]
        command += ["--folder", str(folder.parent)]
        done = subprocess.run(
            [*command, *(["--small"] if small else [])], capture_output=True, text=True, check=False
        )
        told = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:]
        absent = "" if not done.returncode else "absent: "
        print(f"| {name} | {absent}{(told or [''])[0][:100]} |", flush=True)


def alone(name: str, folder: Path, *, small: bool) -> None:
    """Load *name*, score once, print the peak."""
    started = time.perf_counter()
    score = COMPETITORS[name](folder)
    score(QUERY, documents(4 if small else 200))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{peak:.0f} | {seconds:.1f}")


def main() -> None:
    """Measure one part and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 50, 1000])
    parser.add_argument("--folder")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", choices=COMPETITORS, nargs="+")
    asked = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with tempfile.TemporaryDirectory() as cache:
        folder = made(Path(asked.folder or cache))
        if asked.only and asked.part == "memory":
            alone(asked.only[0], folder, small=asked.small)
            return
        print(f"# Side by side: {asked.part}\n\n{machine()}\n")
        if asked.part == "memory":
            memory(folder, small=asked.small)
            return
        first = next(iter(COMPETITORS))
        found = loaded(folder, dict.fromkeys([first, *(asked.only or COMPETITORS)]))
        if asked.part in ("mixed", "full"):
            calls(asked.part, found, [1, 2] if asked.small else asked.counts, asked.rounds)
        else:
            many(asked.part, found, small=asked.small, rounds=asked.rounds)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # a dozen runtimes end in an order that some of them abort at
