"""What a group of candidates teaches: the labels, the teacher, or both."""

import torch
from mining import Group
from recipe import Recipe
from torch import Tensor
from torch.nn import functional


def divergence(z: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of softmax(z) from softmax(teacher), both (k,)."""
    return functional.kl_div(
        z.log_softmax(0), teacher.log_softmax(0), log_target=True, reduction="sum"
    )


def group_loss(z: Tensor, group: Group, recipe: Recipe) -> Tensor:
    """The loss of one group's logits z (k,).

    Unlabelled: KL from the teacher's distribution, and squared differences of centred logits
    (MarginMSE: Hofstätter et al. 2020, arXiv:2010.02666). Labelled: listwise cross-entropy, the
    same KL at a lower weight, and pointwise cross-entropy, which gives the logit an absolute zero.
    """
    teacher = torch.tensor(group.teacher, device=z.device)
    distilled = divergence(z, teacher)
    if not group.labels:
        centred = (z - z.mean()) - (teacher - teacher.mean())
        return recipe.unlabelled_weight * (
            distilled + recipe.margin_weight * centred.square().mean()
        )
    labels = torch.tensor(group.labels, dtype=z.dtype, device=z.device)
    loss = recipe.pointwise_weight * functional.binary_cross_entropy_with_logits(z, labels)
    if labels.any():
        chosen = -(labels * z.log_softmax(0)).sum() / labels.sum()
        loss = loss + recipe.label_weight * chosen + recipe.teacher_weight * distilled
    return loss
