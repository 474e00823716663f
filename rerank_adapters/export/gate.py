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

QUESTIONS = (
    "why is the sky blue?",
    "how long does a passport renewal take",
    "reset a forgotten password",
    "Was ist die Hauptstadt von Australien?",
)
PASSAGES = (
    (
        "Air scatters short wavelengths of sunlight more strongly than long ones. Blue light "
        "therefore reaches the eye from every direction, while red light passes almost straight "
        "through."
    ),
    "Routine applications take six to eight weeks, expedited ones two to three.",
    'Open the sign-in page, choose "Forgot password", and follow the link sent to your address.',
    "Canberra ist die Hauptstadt von Australien und liegt zwischen Sydney und Melbourne.",
    "The river rose two metres overnight, and the lower meadow was under water by the morning.",
    "",
)
LONG_PASSAGE = " ".join(PASSAGES * 9)

Array = NDArray[np.generic]


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


@dataclass(frozen=True, slots=True)
class Bound:
    """What a dtype may cost.

    `absolute` and `relative` bound each logit's drift, as in numpy.allclose. `spread` bounds the
    root mean square drift as a share of the logits' standard deviation over all probes, and
    `batch_drift` how far a logit may move with the company it keeps (0: not by one bit).
    """

    absolute: float
    relative: float
    spread: float
    batch_drift: float


BOUNDS: Mapping[str, Bound] = {
    # Rounding of float32 sums in another order: measured up to 2e-5 on logits of ±5.
    "float32": Bound(absolute=1e-4, relative=1e-5, spread=1e-3, batch_drift=1e-5),
    "float16": Bound(absolute=np.inf, relative=0.0, spread=0.05, batch_drift=np.inf),
    "int8": Bound(absolute=np.inf, relative=0.0, spread=0.25, batch_drift=0.0),
}


def probe(encoder: CrossEncoder) -> list[Probe]:
    """Batches of text pairs and what *encoder* (float32, sdpa where it can) makes of them."""
    pairs = [(question, passage) for question in QUESTIONS for passage in PASSAGES]
    long = [(QUESTIONS[0], LONG_PASSAGE), (QUESTIONS[1], LONG_PASSAGE[: len(LONG_PASSAGE) // 3])]
    batches = [pairs[:1], pairs[5:6], pairs[7:8], pairs[2:5], pairs, long[:1], [*long, pairs[0]]]
    return [_ask(encoder, batch) for batch in batches]


def _ask(encoder: CrossEncoder, pairs: Sequence[tuple[str, str]]) -> Probe:
    features = encoder.preprocess(list(pairs))
    feed = {
        name: value.numpy().astype(np.int64)
        for name, value in features.items()
        if isinstance(value, torch.Tensor) and value.ndim == 2
    }
    with torch.inference_mode():
        logits = encoder(features)["scores"].float().numpy()
    if not any(isinstance(stage, LogitScore) for stage in encoder):
        feed = _padded_right(feed)
    return Probe(feed, logits.reshape(len(pairs), -1))


def _padded_right(feed: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Padding moved behind the tokens, where the backend puts it but for yes/no models.

    Decoders with a head of labels come with tokenizers that pad on the left, and count positions
    from the padding on: a score would move with its company by more than rounding.
    """
    order = np.argsort(feed["attention_mask"] == 0, axis=1, kind="stable")
    return {name: np.take_along_axis(array, order, 1) for name, array in feed.items()}


def check(file: Path, probes: Sequence[Probe], dtype: str) -> None:
    """Raises ModelError naming shape and drift where *file* does not score as torch does."""
    session = open_session(file)
    bound = BOUNDS[dtype]
    answers = [_answer(session, probe) for probe in probes]
    spread = float(np.concatenate([probe.logits for probe in probes]).std(axis=0).max())
    for case, answer in zip(probes, answers, strict=True):
        _check_shape(case, answer)
        drift = np.abs(answer - case.logits)
        limit = bound.absolute + bound.relative * np.abs(case.logits)
        if not np.isfinite(answer).all() or (drift > limit).any():
            raise _failure(case, float(drift.max()), f"at most {bound.absolute:.0e}")
    squares = np.concatenate([(a - p.logits) ** 2 for a, p in zip(answers, probes, strict=True)])
    share = float(np.sqrt(squares.mean())) / max(spread, 1e-6)
    if share > bound.spread:
        worst = max(zip(probes, answers, strict=True), key=lambda it: _drift(*it))
        raise _failure(worst[0], _drift(*worst), f"{bound.spread:.0%} of the standard deviation")
    _check_company(session, probes, answers, bound.batch_drift)


def _check_company(
    session: ort.InferenceSession,
    probes: Sequence[Probe],
    answers: Sequence[NDArray[np.float32]],
    limit: float,
) -> None:
    """Each row alone, without its padding, against the same row among its batch mates."""
    for case, answer in zip(probes, answers, strict=True):
        for row in range(case.shape[0]):
            real = case.feed["attention_mask"][row].astype(bool)
            feed = {name: array[row : row + 1, real] for name, array in case.feed.items()}
            drift = float(np.abs(run(session, feed)[0] - answer[row]).max())
            if drift > limit:
                raise _failure(case, drift, f"{limit:g} between alone and in company")


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


def _drift(case: Probe, answer: NDArray[np.float32]) -> float:
    return float(np.abs(answer - case.logits).max())


def _failure(case: Probe, drift: float, allowed: str) -> ModelError:
    return ModelError(
        f"the exported graph drifts from torch by {drift:.2e} at batch {case.shape[0]}, sequence "
        f"{case.shape[1]} (allowed: {allowed}): no file was kept"
    )


def open_session(file: Path) -> ort.InferenceSession:
    """The file on the CPU, with the options the ONNX backend uses."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # onnxruntime would round activations by fusing DequantizeLinear into MatMul.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run(
    session: ort.InferenceSession, feed: Mapping[str, NDArray[np.int64]]
) -> NDArray[np.float32]:
    """float32 logits for those arrays of *feed* that the graph asks for."""
    names = [node.name for node in session.get_inputs()]
    output: NDArray[np.float32] = session.run(None, {name: feed[name] for name in names})[0]
    return output
