"""Which fault is tested on which backend, and why not on the others.

Rows are faults 1 to 23 of the serving research. Cells: "real" (the thing itself happens),
"injected" (a tap between the queue and the real backend raises, holds or edits), or the reason for
no test.
`stub` is a counting backend under the tiny BERT's tokenizer, `onnx` and `torch` run the tiny BERT.
What the queue alone decides (18, 23, more of others) is tested in tests/engine, over bare forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKENDS = ("stub", "onnx", "torch")

QUEUE_ONLY = "the queue alone decides; nothing of the backend takes part"
NO_NETWORK = "a stub has no files and no arithmetic of its own"


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: the fault's name, its tests' common prefix, and a cell for each backend."""

    name: str
    tests: str
    stub: str
    onnx: str
    torch: str


FAULTS = {
    1: Fault("poisoned neighbour", "poison", "injected", "injected", "injected"),
    2: Fault("out of memory, halved", "oom_split", "injected", "injected", "injected"),
    3: Fault("out of memory at one pair", "oom_at_one", "injected", "injected", "injected"),
    4: Fault("NaN and Inf", "nan", "injected", "injected", "injected"),
    5: Fault("output of the wrong length", "wrong_length", "injected", "injected", "injected"),
    6: Fault("a million characters", "million_characters", "real", "real", "real"),
    7: Fault("empty texts", "empty", NO_NETWORK, "real", "real"),
    8: Fault("wrong types", "wrong_types", "real", "real", "real"),
    9: Fault("hostile Unicode", "unicode", NO_NETWORK, "real", "real"),
    10: Fault("cancelled in mid-queue", "cancel", "real", "real", "real"),
    11: Fault("timeout", "timeout", "real", "real", "real"),
    12: Fault(
        "KeyboardInterrupt",
        "keyboard_interrupt",
        "real",
        "real",
        "the waiting caller is the same code as for onnx; loading torch costs 5 s",
    ),
    13: Fault("BaseException in a worker", "base_exception", "injected", "injected", "injected"),
    14: Fault("fork", "fork", "real", "real", "real: refused, its thread pool hangs in a child"),
    15: Fault("exit with work in flight", "exit", "real", "real", "real"),
    16: Fault(
        "event loops",
        "loops",
        QUEUE_ONLY,
        "real",
        "the same Futures as for onnx; no backend code runs in a loop",
    ),
    17: Fault("overload", "overload", "real", "real", "real"),
    18: Fault("starvation", "starvation", "real", QUEUE_ONLY, QUEUE_ONLY),
    19: Fault("one tokenizer, many threads", "tokeniser", NO_NETWORK, "real", "real"),
    20: Fault("damaged checkpoint", "damaged", NO_NETWORK, "real", "real"),
    21: Fault(
        "full disk",
        "full_disk",
        NO_NETWORK,
        "real: exporting onto a full file system",
        "real: unpacking the bundled model onto a full file system",
    ),
    22: Fault("close in every state", "close", "real", "real", "real"),
    23: Fault("soak", "soak", "real", QUEUE_ONLY, QUEUE_ONLY),
}


def backends_for(number: int) -> list[str]:
    """The backends on which fault *number* has a test."""
    cells = {name: getattr(FAULTS[number], name) for name in BACKENDS}
    return [name for name, cell in cells.items() if cell.startswith(("real", "injected"))]
