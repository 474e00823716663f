"""What a group of candidates teaches: the teacher's order, and the labels that there are."""

from typing import NamedTuple

import numpy as np
import torch
from groups import Groups
from recipe import Recipe
from torch import Tensor
from torch.nn import functional

NEVER = -1e4  # the logit of a candidate that is not there
RAISED = 2.0
"""How far an answer stands above its group's best by the teacher."""
SUNK = 3.0
"""How far a passage that answers nothing stands below its group's worst."""


class Targets(NamedTuple):
    """What groups of up to k candidates say, each (groups, k) but for the last three.

    teacher: logits, NEVER where there is no candidate. labels: 1 for an answer. there: 1 for a
    candidate. known: 1 where the label is an absolute one. cells: (pairs,) where each pair's logit
    goes in the flattened (groups, k). labelled, answered: (groups,) whether the group has labels,
    and an answer among them.
    """

    teacher: Tensor
    labels: Tensor
    there: Tensor
    known: Tensor
    cells: Tensor
    labelled: Tensor
    answered: Tensor

    def spread(self, z: Tensor) -> Tensor:
        """Logits (..., pairs) in their places (..., groups, k)."""
        flat = z.new_full((*z.shape[:-1], self.there.numel()), NEVER)
        return flat.index_copy(-1, self.cells, z).view(*z.shape[:-1], *self.there.shape)


def targets(groups: Groups, junk: int, device: torch.device) -> Targets:
    """The targets of some groups; documents from `junk` on answer nothing."""
    there = groups.there
    nothing = groups.candidates >= junk
    labels = groups.labels * there
    teacher = groups.teacher.astype(np.float32)
    real = there & ~nothing
    best = np.where(real, teacher, -np.inf).max(1, keepdims=True)
    worst = np.where(real, teacher, np.inf).min(1, keepdims=True)
    teacher = np.where(labels > 0, np.maximum(teacher, best + RAISED), teacher)
    teacher = np.where(nothing, worst - SUNK, teacher)
    teacher = np.where(there, teacher, NEVER)
    known = there & (groups.labelled[:, None] | nothing)
    arrays = (
        teacher.astype(np.float32),
        labels.astype(np.float32),
        there.astype(np.float32),
        known.astype(np.float32),
        np.flatnonzero(there),
        groups.labelled,
        labels.any(1),
    )
    return Targets(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


def group_losses(z: Tensor, wanted: Targets, recipe: Recipe) -> Tensor:
    """The loss of each group's logits, (..., groups, k) to (..., groups).

    All: KL from the teacher's distribution, and squared differences of centred logits (MarginMSE:
    Hofstätter et al. 2020, arXiv:2010.02666). Labelled: listwise cross-entropy over answers, and
    pointwise cross-entropy, which gives the logit an absolute nought.
    """
    there, count = wanted.there, wanted.there.sum(1)
    ours, theirs = z.log_softmax(-1), wanted.teacher.log_softmax(-1)
    distilled = (theirs.exp() * (theirs - ours) * there).sum(-1)
    gap = (z - wanted.teacher) * there
    centred = (gap - gap.sum(-1, keepdim=True) / count[:, None]) * there
    margins = centred.square().sum(-1) / count
    whole = recipe.teacher_weight * distilled + recipe.margin_weight * margins
    chosen = -(wanted.labels * ours).sum(-1) / wanted.labels.sum(1).clamp(min=1)
    pointwise = functional.binary_cross_entropy_with_logits(
        z, wanted.labels.expand_as(z), reduction="none"
    )
    pointwise = (pointwise * wanted.known).sum(-1) / wanted.known.sum(1).clamp(min=1)
    return (
        whole + recipe.label_weight * wanted.answered * chosen + recipe.pointwise_weight * pointwise
    )
