"""The knobs of a run."""

from dataclasses import dataclass

from model import MAX_LENGTH


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides the groups.

    seconds: where not 0, the length of the run and of its schedule in seconds of training instead
    of steps; the log says how many steps that was. start: "shipped", the weights that the package
    has, or "base". members: of the teacher, with commas; empty is all. labelled, unlabelled: which
    groups are used. late: from which share of the run on pairs may be as long as max_length, before
    that short_length. average: the decay of the weights' running mean, which is what is kept.
    """

    seed: int = 0
    steps: int = 2000
    seconds: float = 0.0
    start: str = "shipped"
    members: str = ""
    groups_per_step: int = 128
    learning_rate: float = 2e-4
    warmup: float = 0.04
    weight_decay: float = 0.01
    teacher_weight: float = 1.0
    margin_weight: float = 0.05
    label_weight: float = 0.5
    pointwise_weight: float = 0.15
    exit_weight: float = 0.1
    labelled: bool = True
    unlabelled: bool = True
    short_length: int = 224
    max_length: int = MAX_LENGTH
    late: float = 0.75
    average: float = 0.998
