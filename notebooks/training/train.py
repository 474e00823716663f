"""Train the bundled reranker on built groups: one run of one recipe.

    python notebooks/training/train.py --carry runs/main --out runs/main --steps 200

Seeded. Interrupted, the same command goes on from the last checkpoint. CPU or CUDA.
"""

import argparse
import copy
import json
import math
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from build import Material, build, note, taught
from calibration import calibrate, expected_calibration_error, flatten
from evaluation import ndcg, scored, table
from losses import group_losses, targets
from model import DTYPE, Student, check_lists, check_packed, logits, pack
from recipe import Recipe
from save import save_model, starting_weights

CHECKPOINT_SECONDS = 120


class Run:
    """The state of a run: step, weights, their running mean, optimiser, log."""

    def __init__(
        self, recipe: Recipe, material: Material, carry: Path, folder: Path, device: torch.device
    ) -> None:
        """From the recipe's starting weights, or from the folder's checkpoint if there is one."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.material, self.folder = recipe, material, folder
        self.student = Student()
        self.student.start(starting_weights(carry, recipe.start))
        self.student.to(device)
        check_packed(self.student)
        check_lists(self.student)
        self.mean = copy.deepcopy(self.student)
        weights = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            weights,
            recipe.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.step, self.seconds, self.log, self.averaged = 0, 0.0, [], 0
        rows = np.flatnonzero(
            material.groups.labelled
            if not recipe.unlabelled
            else ~material.groups.labelled
            if not recipe.labelled
            else np.ones(len(material.groups), bool)
        )
        self.rows = rows
        if self.checkpoint.exists():
            self.restore()

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept."""
        return self.folder / "checkpoint.pt"

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.student.parameters()).device

    def save(self) -> None:
        """Write the state whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
            "averaged": self.averaged,
            "student": self.student.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def restore(self) -> None:
        """Take up the state of a checkpoint made with the same recipe."""
        state = torch.load(self.checkpoint, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise SystemExit(f"`--out` holds a checkpoint of another recipe: {state['recipe']}")
        for name in ("student", "mean", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        self.averaged = state["averaged"]

    @property
    def done(self) -> float:
        """How much of the run is over, 0 to 1."""
        if self.recipe.seconds:
            return min(1.0, self.seconds / self.recipe.seconds)
        return min(1.0, self.step / self.recipe.steps)

    def rate(self) -> float:
        """Linear warm-up, then half a cosine to nought."""
        done, warm = self.done, self.recipe.warmup
        share = (
            done / warm
            if done < warm
            else 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))
        )
        return self.recipe.learning_rate * max(share, 1e-3)

    def advance(self) -> tuple[torch.Tensor, int, int]:
        """One optimiser step; returns (mean losses: the model, its exits; pairs; tokens)."""
        size = self.recipe.groups_per_step
        at = np.arange(self.step * size, (self.step + 1) * size) % len(self.rows)
        part = self.material.groups.take(self.rows[at])
        rows, column = np.nonzero(part.there)
        limit = (
            self.recipe.max_length if self.done >= self.recipe.late else self.recipe.short_length
        )
        pairs = pack(
            self.material.queries,
            self.material.documents,
            part.asked[rows],
            part.candidates[rows, column],
            limit,
        )
        wanted = targets(part, self.material.corpus.junk, self.device)
        losses = group_losses(
            wanted.spread(logits(self.student, pairs, DTYPE)), wanted, self.recipe
        )
        early = losses[1:].mean() if self.recipe.exit_weight else losses.new_zeros(())
        for options in self.optimizer.param_groups:
            options["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        (losses[0].mean() + 3 * self.recipe.exit_weight * early).backward()
        torch.nn.utils.clip_grad_norm_(
            [p for p in self.student.parameters() if p.requires_grad], 1.0
        )
        self.optimizer.step()
        self.step += 1
        self.average()
        return losses.detach().mean(1), len(rows), int(pairs.host.sum())

    @torch.no_grad()
    def average(self) -> None:
        """Follow the weights, from three tenths of the run on."""
        self.averaged += self.done >= 0.3
        decay = (
            min(self.recipe.average, self.averaged / (self.averaged + 10)) if self.averaged else 0.0
        )
        torch._foreach_lerp_(
            list(self.mean.parameters()), list(self.student.parameters()), 1 - decay
        )


def train(run: Run, *, every: float = 20.0, stop: float = math.inf) -> None:
    """All steps: a log line now and then, a checkpoint every two minutes; ends early at `stop`."""
    saved = shown = time.monotonic()
    pairs = tokens = 0
    losses: list[torch.Tensor] = []
    while run.done < 1 and time.monotonic() < stop:
        begun = time.monotonic()
        loss, n, t = run.advance()
        losses.append(loss)
        pairs, tokens = pairs + n, tokens + t
        if run.device.type == "cuda" and run.step % 8 == 0:
            torch.cuda.synchronize()  # so that the clock tells the truth
        run.seconds += time.monotonic() - begun
        if time.monotonic() - shown > every or run.done >= 1:
            mean = torch.stack(losses).mean(0).tolist()
            run.log.append(
                {
                    "step": run.step,
                    "seconds": round(run.seconds, 1),
                    "pairs": pairs,
                    "tokens": tokens,
                    "loss": round(mean[0], 4),
                    "exits": [round(x, 4) for x in mean[1:]],
                }
            )
            note(
                run.folder.name, run.log[-1], f"{tokens / (time.monotonic() - shown):,.0f} tokens/s"
            )
            shown, losses, pairs, tokens = time.monotonic(), [], 0, 0
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            run.save()
            saved = time.monotonic()


def judged(student: Student, material: Material) -> dict:
    """What a student reaches on the held-out questions, with each exit, and its calibration."""
    held = material.held
    whole = scored(student, material.queries, material.documents, held.groups)
    labels, there = held.groups.labels, held.groups.there
    found: dict = {"dev": table(ndcg(whole[0], labels, there), held)}
    for at, layer in enumerate(student.exits, 1):
        found[f"exit {layer}"] = table(ndcg(whole[at], labels, there), held)["mean"]
    flat = flatten(held.names, whole[0], labels, there)
    fit = calibrate(flat)
    return found | {"fit": fit, "ece": expected_calibration_error(flat, fit)}


def parse() -> argparse.Namespace:
    """The command line; every field of Recipe is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--carry", type=Path, required=True, help="the folder that prepare.py wrote"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of this run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--share", type=float, default=1.0, help="of the groups of each set")
    for each in fields(Recipe):
        option = f"--{each.name.replace('_', '-')}"
        if each.type is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=each.default)
        else:
            parser.add_argument(option, type=type(each.default), default=each.default)
    return parser.parse_args()


def main() -> None:
    """Build, train, judge, save."""
    options = parse()
    device = torch.device(options.device)
    recipe = Recipe(**{each.name: getattr(options, each.name) for each in fields(Recipe)})
    material = build(options.carry, device, share=options.share)
    taught(material, recipe.members)
    run = Run(recipe, material, options.carry, options.out, device)
    train(run)
    run.save()
    found = judged(run.mean, material)
    save_model(run.mean, options.out / "model", tuple(found["fit"]))
    (options.out / "log.json").write_text(
        json.dumps({"recipe": asdict(recipe), "log": run.log, **found}, indent=1)
    )
    note(json.dumps(found))


if __name__ == "__main__":
    main()
