"""The knobs of a run."""

from dataclasses import dataclass

from model import MAX_LENGTH


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides the data and the mixture.

    minutes: where not 0, the length of the run and of its schedule in minutes of training instead
    of steps; the log says how many steps that was on the machine at hand. lexical: BM25's part in
    the teacher. labelled, unlabelled, only (names of sets, with commas): which of the prepared
    groups are used. long_share: the least share of pairs above 256 tokens. cosine_start: the share
    of the run in which a cosine head over the joint encoding is trained and [CLS] learns from it.
    dev_questions: of each set. calibration_questions: of all sets; 0 leaves scores as they are.
    """

    seed: int = 0
    steps: int = 4000
    minutes: float = 0.0
    groups_per_step: int = 32
    learning_rate: float = 2e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    label_weight: float = 1.0
    teacher_weight: float = 0.5
    unlabelled_weight: float = 1.0
    margin_weight: float = 0.03
    pointwise_weight: float = 0.2
    lexical: float = 1.5
    labelled: bool = True
    unlabelled: bool = True
    only: str = ""
    max_length: int = MAX_LENGTH
    long_share: float = 0.2
    cosine_start: float = 0.0
    evaluations: int = 5
    dev_questions: int = 60
    calibration_questions: int = 2000
