"""What int8 costs and gains: our per-token scales beside onnxruntime's one scale per batch.

    python tests/benchmarks/int8.py [CHECKPOINT] [--rounds 5]

CHECKPOINT is a folder with float32 weights; without one it is the bundled model, unpacked, whose
weights are int8 already: then the drift of weights is none for ours. Prints Markdown tables: size;
processor time for batches of one shape, one thread; drift of logits from torch float32 over
questions and passages of the example corpus; and how far a logit moves with its company.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import CrossEncoder
from texts import CORPUS, machine

from rerank_adapters.export import FILE_NAMES, export_onnx, gate, graph, network
from rerank_adapters.loading import bundled

SHAPES = ((8, 128), (4, 256), (2, 512), (1, 154))
Feed = dict[str, NDArray[np.int64]]


def main() -> None:
    """Export four ways, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = options.checkpoint or bundled.unpack(folder)
        encoder = network.load(checkpoint)
        cases = _cases(encoder)
        graphs = _graphs(checkpoint, encoder, folder)
        sessions = {name: _session(file) for name, file in graphs.items()}
        print(f"# int8\n\n{machine()}\n")
        _report(graphs, sessions, cases, options.rounds)


def _graphs(checkpoint: Path, encoder: CrossEncoder, folder: Path) -> dict[str, Path]:
    traced = graph.trace(network.build(encoder))
    onnx.save(traced, folder / "traced.onnx")
    del traced.graph.value_info[:]  # onnxruntime's quantizer infers shapes again and disagrees
    onnx.save(traced, folder / "bare.onnx")
    quantize_dynamic(
        folder / "bare.onnx", folder / "dynamic.onnx", per_channel=True, weight_type=QuantType.QInt8
    )
    ours = {name: folder / FILE_NAMES[name] for name in ("float32", "int8")}
    for name in ("float32", "int8"):
        export_onnx(checkpoint, folder, name)
    return {
        "float32 as torch.onnx writes it": folder / "traced.onnx",
        "float32, ours": ours["float32"],
        "int8, onnxruntime dynamic (per tensor)": folder / "dynamic.onnx",
        "int8, ours (per token)": ours["int8"],
    }


def _cases(encoder: CrossEncoder) -> list[gate.Probe]:
    """Every fourth question with passages of all ranks, in batches of mixed lengths."""
    passages = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    questions = (CORPUS.parent / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [f"{passage.get('title', '')} {passage['text']}".strip() for passage in passages]
    random = np.random.default_rng(0)
    pairs = [
        (json.loads(question)["text"], texts[row])
        for question in questions[::4]
        for row in random.choice(len(texts), 16, replace=False)
    ]
    return [gate._ask(encoder, pairs[start : start + 8]) for start in range(0, len(pairs), 8)]


def _session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _seconds(
    sessions: dict[str, ort.InferenceSession], feed: Feed, rounds: int
) -> dict[str, float]:
    """The least processor time of *rounds*, taking turns: other work on the machine adds to it."""
    best = dict.fromkeys(sessions, np.inf)
    for _ in range(rounds + 1):
        for name, session in sessions.items():
            start = time.process_time()
            gate.run(session, feed)
            best[name] = min(best[name], time.process_time() - start)
    return best


def _report(
    graphs: dict[str, Path],
    sessions: dict[str, ort.InferenceSession],
    cases: list[gate.Probe],
    rounds: int,
) -> None:
    heads = "".join(f" {batch}x{length} ms |" for batch, length in SHAPES)
    print(f"| graph | MB |{heads} speed |\n|---|---|{'---|' * (len(SHAPES) + 1)}")
    times = {name: [] for name in sessions}
    for batch, length in SHAPES:
        ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
        ones = np.ones_like(ids)
        feed = {"input_ids": ids, "attention_mask": ones, "token_type_ids": ones}
        for name, seconds in _seconds(sessions, feed, rounds).items():
            times[name].append(seconds)
    first = next(iter(times.values()))
    for name, row in times.items():
        cells = "".join(f" {1000 * seconds:.1f} |" for seconds in row)
        ratio = np.exp(np.mean(np.log(np.array(first) / row)))
        print(f"| {name} | {graphs[name].stat().st_size / 1e6:.1f} |{cells} {ratio:.2f}x |")
    _report_drift(sessions, cases)


def _report_drift(sessions: dict[str, ort.InferenceSession], cases: list[gate.Probe]) -> None:
    exact = np.concatenate([case.logits[:, 0] for case in cases])
    print(f"\n{len(exact)} pairs; logits of standard deviation {exact.std():.2f}\n")
    print("| graph | drift / sd | largest | correlation | largest move with company |")
    print("|---|---|---|---|---|")
    for name, session in sessions.items():
        answers = [gate.run(session, case.feed)[:, 0] for case in cases]
        drift = np.concatenate(answers) - exact
        moves = [
            abs(float(gate.run(session, _alone(case, row))[0, 0] - answer[row]))
            for case, answer in zip(cases, answers, strict=True)
            for row in range(len(answer))
        ]
        correlation = np.corrcoef(drift + exact, exact)[0, 1]
        share = np.sqrt(np.mean(drift**2)) / exact.std()
        print(
            f"| {name} | {share:.4f} | {np.abs(drift).max():.3f} | {correlation:.5f} "
            f"| {max(moves):.1e} |"
        )


def _alone(case: gate.Probe, row: int) -> Feed:
    real = case.feed["attention_mask"][row].astype(bool)
    return {name: array[row : row + 1, real] for name, array in case.feed.items()}


if __name__ == "__main__":
    main()
