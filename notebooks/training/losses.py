"""What a group of candidates teaches: the labels, the teacher, or both."""

from typing import NamedTuple

import numpy as np
import torch
from prepared import TEACHER_SCALE, Group
from recipe import Recipe
from torch import Tensor
from torch.nn import functional

NEVER = -1e4  # the logit of a candidate that is not there


class Targets(NamedTuple):
    """What groups of up to k candidates say, each (groups, k) but for `cells`.

    teacher: logits, NEVER where there is no candidate. labels: 1 for an answer. there: 1 for a
    candidate. cells: (pairs,) where each pair's logit goes in the flattened (groups, k). labelled
    and answered: (groups,) whether the group has labels, and an answer among them.
    """

    teacher: Tensor
    labels: Tensor
    there: Tensor
    cells: Tensor
    labelled: Tensor
    answered: Tensor

    def spread(self, z: Tensor) -> Tensor:
        """Logits (pairs,) in their cells (groups, k)."""
        flat = z.new_full((self.there.numel(),), NEVER)
        return flat.index_copy(0, self.cells, z).view_as(self.there)


def targets(groups: list[Group], lexical: float, device: torch.device) -> Targets:
    """The targets of some groups; the teacher is the base's cosine and a little BM25."""
    width = max(len(group.candidates) for group in groups)
    teacher = np.full((len(groups), width), NEVER, np.float32)
    labels, there = np.zeros_like(teacher), np.zeros_like(teacher)
    for row, group in enumerate(groups):
        size = len(group.candidates)
        parts = np.asarray(group.cosine), np.asarray(group.lexical)
        teacher[row, :size] = TEACHER_SCALE * parts[0] + lexical * parts[1]
        labels[row, : len(group.labels)] = group.labels
        there[row, :size] = 1
    labelled = np.array([bool(group.labels) for group in groups])
    arrays = (teacher, labels, there, np.flatnonzero(there), labelled, labels.any(1))
    return Targets(*(torch.from_numpy(array).to(device) for array in arrays))


def divergence(z: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of softmax(z) from softmax(teacher), both (groups, k): (groups,)."""
    ours, theirs = z.log_softmax(1), teacher.log_softmax(1)
    return functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(1)


def group_losses(z: Tensor, wanted: Targets, recipe: Recipe) -> Tensor:
    """The loss of each group's logits, (groups, k) to (groups,).

    Unlabelled: KL from the teacher's distribution, and squared differences of centred logits
    (MarginMSE: Hofstätter et al. 2020, arXiv:2010.02666). Labelled: listwise cross-entropy, the
    same KL at a lower weight, and pointwise cross-entropy, which gives the logit an absolute zero.
    """
    there, labels = wanted.there, wanted.labels
    distilled, count = divergence(z, wanted.teacher), there.sum(1)
    gap = (z - wanted.teacher) * there
    centred = (gap - gap.sum(1, keepdim=True) / count[:, None]) * there
    margins = centred.square().sum(1) / count
    unlabelled = recipe.unlabelled_weight * (distilled + recipe.margin_weight * margins)
    pointwise = functional.binary_cross_entropy_with_logits(z, labels, there, reduction="none")
    chosen = -(labels * z.log_softmax(1)).sum(1) / labels.sum(1).clamp(min=1)
    listwise = recipe.label_weight * chosen + recipe.teacher_weight * distilled
    labelled = recipe.pointwise_weight * pointwise.sum(1) / count + wanted.answered * listwise
    return torch.where(wanted.labelled, labelled, unlabelled)
