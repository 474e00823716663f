"""The state of a training run: one step, its checkpoint, its log."""

import math
from dataclasses import asdict
from pathlib import Path

import parallel
import torch
from losses import divergence, group_losses, targets
from model import base_folder, check_packed, logits, new_cross_encoder, read
from prepared import TEACHER_SCALE, Group, Prepared
from recipe import Recipe
from torch import Tensor


class Run:
    """The state of a training run in its folder: step, weights, optimiser, random state, log."""

    def __init__(self, recipe: Recipe, folder: Path, device: str) -> None:
        """From base weights, or from the folder's checkpoint where there is one."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder = recipe, folder
        self.model = new_cross_encoder(base_folder())
        check_packed(self.model)
        self.model.to(device)
        self.model.bert.embeddings.word_embeddings.requires_grad_(False)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            weights,
            recipe.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.step, self.log, self.seconds = 0, [], 0.0
        self.base: dict[str, float] = {}  # what the base reaches on the development questions
        if self.checkpoint.exists():
            self.restore()

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the state whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "log": self.log,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch": torch.get_rng_state(),
        }
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def restore(self) -> None:
        """Take up the state of a checkpoint made with the same recipe."""
        state = torch.load(self.checkpoint, weights_only=True)
        if asdict(Recipe()) | state["recipe"] != asdict(self.recipe):
            raise SystemExit(f"`--out` holds a checkpoint of another recipe: {state['recipe']}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch"])
        self.step, self.log, self.seconds = state["step"], state["log"], state["seconds"]

    @property
    def done(self) -> float:
        """How much of the run is over, 0 to 1."""
        if self.recipe.minutes:
            return min(1.0, self.seconds / 60 / self.recipe.minutes)
        return self.step / self.recipe.steps

    def rate(self) -> float:
        """Linear warm-up, then half a cosine to zero."""
        done, warm = self.done, self.recipe.warmup
        share = (
            done / warm
            if done < warm
            else 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))
        )
        return self.recipe.learning_rate * max(share, 1e-3)

    def advance(self, groups: list[Group], prepared: Prepared) -> dict[str, float]:
        """One optimiser step over the groups; returns what the log keeps of it."""
        groups = parallel.share(groups, [prepared.tokens(g) for g in groups])
        limit = self.recipe.max_length
        pairs = [pair for group in groups for pair in prepared.pairs(group, limit)]
        losses = self.losses(groups, pairs)
        for options in self.optimizer.param_groups:
            options["lr"] = self.rate()
        self.optimizer.zero_grad()
        losses.mean().backward()
        parallel.average(p.grad for p in self.model.parameters() if p.grad is not None)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return merged(parallel.gather(summary(losses, groups, pairs)))

    def losses(self, groups: list[Group], pairs: list) -> Tensor:
        """Of each group: (groups,)."""
        wanted = targets(groups, self.recipe.lexical, self.model.device)
        if self.done >= self.recipe.cosine_start:
            return group_losses(wanted.spread(logits(self.model, pairs)), wanted, self.recipe)
        heads = read(self.model, pairs)
        z = wanted.spread(TEACHER_SCALE * heads.cosine)
        taught = divergence(wanted.spread(heads.logit), z.detach())  # [CLS] follows the cosine head
        return group_losses(z, wanted, self.recipe) + taught


def merged(parts: list[dict[str, float]]) -> dict[str, float]:
    """The workers' summaries as one: means of losses, sums of counts."""
    whole = {}
    for key in sorted({k for part in parts for k in part}):
        values = [part[key] for part in parts if key in part]
        whole[key] = (
            sum(values) if key in ("pairs", "tokens") else round(sum(values) / len(values), 4)
        )
    return whole


def summary(losses: Tensor, groups: list[Group], pairs: list) -> dict[str, float]:
    """What the log keeps of a step."""
    kinds = {"labelled": [], "unlabelled": []}
    for loss, group in zip(losses.tolist(), groups, strict=True):
        kinds["labelled" if group.labels else "unlabelled"].append(loss)
    means = {k: round(sum(v) / len(v), 4) for k, v in kinds.items() if v}
    return means | {"pairs": len(pairs), "tokens": sum(len(q) + len(d) + 3 for q, d in pairs)}
