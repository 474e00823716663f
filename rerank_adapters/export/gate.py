"""The parity gate: an ONNX file must score as torch does, at shapes the trace never saw.

`probe` asks torch first, before the network is touched; `check` compares a finished file with its
answers. The batches hold one pair and many, short and long, padded and not, cut at the model's
limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore

from ..errors import ModelError
from ..parity.comparison import BOUNDS, drift, share_of_spread, spread_of, within
from ..parity.probes import batches
from .framing import PLAIN, Framing


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One batch: the arrays fed, by input name, and torch's float32 logits (batch, labels)."""

    feed: Mapping[str, NDArray[np.int64]]
    logits: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, sequence)."""
        batch, sequence = self.feed["input_ids"].shape
        return batch, sequence


def probe(oracle: CrossEncoder, framing: Framing = PLAIN) -> list[Probe]:
    """Ask *oracle* (float32, sdpa where it can) for the logits of every batch of probe texts."""
    return [_ask(oracle, batch, framing) for batch in batches()]


def _ask(oracle: CrossEncoder, pairs: Sequence[tuple[str, str]], framing: Framing = PLAIN) -> Probe:
    features = framing.features(oracle, list(pairs))
    feed = {
        name: value.numpy().astype(np.int64)
        for name, value in features.items()
        if isinstance(value, torch.Tensor) and value.ndim == 2
    }
    with torch.inference_mode():
        logits = oracle(features)["scores"].float().numpy()
    if not any(isinstance(stage, LogitScore) for stage in oracle):
        feed = _padded_right(feed)
    return Probe(feed, logits.reshape(len(pairs), -1))


def _padded_right(feed: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Move padding behind the tokens, where the backend puts it but for yes/no models.

    Decoders with a head of labels come with tokenizers that pad on the left, and count positions
    from the padding on: a score would move with its company by more than rounding.
    """
    order = np.argsort(feed["attention_mask"] == 0, axis=1, kind="stable")
    return {name: np.take_along_axis(array, order, 1) for name, array in feed.items()}


def check(file: Path, probes: Sequence[Probe], dtype: str) -> None:
    """Raise ModelError naming shape and drift where *file* does not score as torch does."""
    session = open_session(file)
    bound, spread = BOUNDS[dtype], spread_of([probe.logits for probe in probes])
    answers = [_answer(session, probe) for probe in probes]
    for case, answer in zip(probes, answers, strict=True):
        _check_shape(case, answer)
        here = bound.at(case.shape[1], spread)
        if not within(answer, case.logits, here):
            raise _failure(case, drift(answer, case.logits), f"at most {here.absolute:.0e}")
    if share_of_spread(answers, [probe.logits for probe in probes]) > bound.spread:
        drifts = [drift(answer, case.logits) for case, answer in zip(probes, answers, strict=True)]
        worst = int(np.argmax(drifts))
        allowed = f"{bound.spread:.0%} of the standard deviation"
        raise _failure(probes[worst], drifts[worst], allowed)
    _check_company(session, probes, answers, bound.batch_drift)


def _check_company(
    session: ort.InferenceSession,
    probes: Sequence[Probe],
    answers: Sequence[NDArray[np.float32]],
    limit: float,
) -> None:
    """Compare each row alone, without its padding, with the same row among its batch mates."""
    for case, answer in zip(probes, answers, strict=True):
        for row in range(case.shape[0]):
            real = case.feed["attention_mask"][row].astype(bool)
            feed = {name: array[row : row + 1, real] for name, array in case.feed.items()}
            moved = drift(run(session, feed)[0], answer[row])
            if moved > limit:
                raise _failure(case, moved, f"{limit:g} between alone and in company")


def _answer(session: ort.InferenceSession, case: Probe) -> NDArray[np.float32]:
    try:
        return run(session, case.feed)
    except Exception as error:  # onnxruntime raises a class per failure, with no common base
        raise ModelError(
            f"the exported graph does not run at batch {case.shape[0]}, sequence {case.shape[1]}: "
            f"no file was kept ({error})"
        ) from error


def _check_shape(case: Probe, answer: NDArray[np.float32]) -> None:
    if answer.shape != case.logits.shape:
        raise ModelError(
            f"the exported graph gives logits of shape {answer.shape} for a batch of shape "
            f"{case.shape}, torch gives {case.logits.shape}: no file was kept"
        )


def _failure(case: Probe, moved: float, allowed: str) -> ModelError:
    return ModelError(
        f"the exported graph drifts from torch by {moved:.2e} at batch {case.shape[0]}, sequence "
        f"{case.shape[1]} (allowed: {allowed}): no file was kept"
    )


def open_session(file: Path) -> ort.InferenceSession:
    """Open the file on the CPU, with the options the ONNX backend uses."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # onnxruntime would round activations by fusing DequantizeLinear into MatMul.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run(
    session: ort.InferenceSession, feed: Mapping[str, NDArray[np.int64]]
) -> NDArray[np.float32]:
    """Return float32 logits for those arrays of *feed* that the graph asks for."""
    names = [node.name for node in session.get_inputs()]
    output: NDArray[np.float32] = session.run(None, {name: feed[name] for name in names})[0]
    return output
