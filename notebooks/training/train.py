"""Train the bundled reranker: base weights and prepared groups in, a Hugging Face folder out.

    python notebooks/training/train.py --prepared runs/main/prepared.pickle --out runs/main

Seeded. Interrupted, the same command goes on from the last checkpoint. CPU (bfloat16) or CUDA.
"""

import argparse
import json
import random
import time
from dataclasses import asdict, fields
from pathlib import Path

import parallel
import torch
from calibration import calibrate, expected_calibration_error
from evaluation import by_set, score_groups
from prepared import Group, Prepared, with_long_pairs
from recipe import Recipe
from run import Run
from save import save_model

CHECKPOINT_SECONDS = 240


def train(run: Run, groups: list[Group], dev: list[Group], prepared: Prepared) -> None:
    """All steps: a log line each, an evaluation now and then, a checkpoint every few minutes."""
    size, saved = run.recipe.groups_per_step, time.monotonic()
    wrapped = groups + groups[:size]
    while run.done < 1:
        begun, before = time.monotonic(), run.done
        first = run.step * size % len(groups)
        entry = run.advance(wrapped[first : first + size], prepared)
        run.seconds = parallel.gather(run.seconds + time.monotonic() - begun)[0]
        begun = time.monotonic()
        if int(run.done * run.recipe.evaluations) > int(before * run.recipe.evaluations):
            entry["dev"] = evaluate(run, dev, prepared)
        run.seconds = parallel.gather(run.seconds + time.monotonic() - begun)[0]
        run.log.append({"step": run.step, "seconds": round(run.seconds, 1), **entry})
        if parallel.rank():
            continue
        report(run, entry)
        if time.monotonic() - saved > CHECKPOINT_SECONDS or run.done >= 1:
            run.save()
            saved = time.monotonic()


def evaluate(run: Run, dev: list[Group], prepared: Prepared) -> dict[str, float]:
    """nDCG@10 on the development questions; writes the model so far, roughly calibrated."""
    scores = score_groups(run.model, dev, prepared, run.recipe.max_length)
    if not parallel.rank():
        save_model(run.model, run.folder / "model", calibrate(dev, scores))
    return by_set(dev, scores)


def report(run: Run, entry: dict) -> None:
    """A line of progress every twenty steps and at every evaluation."""
    if "dev" in entry or run.step % 20 == 0:
        recent = run.log[-20:]
        means = {
            k: sum(e[k] for e in recent if k in e) / max(1, sum(k in e for e in recent))
            for k in ("labelled", "unlabelled")
        }
        speed = sum(e["pairs"] for e in run.log) / run.seconds
        shown = f"{run.step} ({run.done:.1%}) labelled {means['labelled']:.3f}"
        shown += f" unlabelled {means['unlabelled']:.3f} {speed:.1f} pairs/s {run.seconds:.0f}s"
        print(time.strftime("%H:%M:%S"), shown, entry.get("dev", ""), flush=True)


def parse() -> argparse.Namespace:
    """The command line; every field of Recipe is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", type=Path, required=True, help="what prepare.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder of this run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    for each in fields(Recipe):
        option = f"--{each.name.replace('_', '-')}"
        if each.type is bool or each.type == "bool":
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=each.default)
        else:
            parser.add_argument(option, type=type(each.default), default=each.default)
    return parser.parse_args()


def main() -> None:
    """Train, calibrate, save."""
    options = parse()
    parallel.start()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(**{each.name: getattr(options, each.name) for each in fields(Recipe)})
    prepared = Prepared.load(options.prepared)
    dev = development(prepared.held, recipe)
    groups = with_long_pairs(chosen(prepared.groups, recipe), prepared, recipe.long_share)
    run = Run(recipe, options.out, options.device)
    run.base = by_set(dev, [list(group.cosine) for group in dev])
    print(len(groups), "groups; base", run.base, flush=True)
    train(run, groups, dev, prepared)
    finish(run, prepared)


def chosen(groups: list[Group], recipe: Recipe) -> list[Group]:
    """The prepared groups that the recipe uses."""
    only = set(filter(None, recipe.only.split(",")))
    return [
        group
        for group in groups
        if (recipe.labelled if group.labels else recipe.unlabelled)
        and (not only or group.source.partition(":")[0] in only)
    ]


def development(held: list[Group], recipe: Recipe) -> list[Group]:
    """A fixed sample of the held-out questions whose answer was retrieved."""
    rng = random.Random(recipe.seed)
    names = sorted({g.source for g in held})
    dev = []
    for name in names:
        own = [g for g in held if g.source == name and any(g.labels)]
        dev += rng.sample(own, min(recipe.dev_questions, len(own)))
    return dev


def finish(run: Run, prepared: Prepared) -> None:
    """Calibrate on one half of the held-out questions, measure on the other, write all."""
    count = min(run.recipe.calibration_questions, len(prepared.held))
    held = random.Random(run.recipe.seed + 1).sample(prepared.held, count)
    scores = score_groups(run.model, held, prepared, run.recipe.max_length)
    if parallel.rank():
        return
    fit, error = (1.0, 0.0), {}
    if held:
        fit = calibrate(held[::2], scores[::2])
        error = {
            "before": expected_calibration_error(held[1::2], scores[1::2], (1.0, 0.0)),
            "after": expected_calibration_error(held[1::2], scores[1::2], fit),
        }
    save_model(run.model, run.folder / "model", fit)
    pairs = sum(entry["pairs"] for entry in run.log)
    facts = {
        "recipe": asdict(run.recipe), "device": torch.cuda.get_device_name()
        if run.model.device.type == "cuda" else "cpu",
        "steps": run.step, "pairs": pairs, "minutes": round(run.seconds / 60, 1),
        "calibration": fit, "expected_calibration_error": error, "base": run.base, "log": run.log,
    }  # fmt: skip
    (run.folder / "curves.json").write_text(json.dumps(facts))
    print("calibration", fit, error, flush=True)


if __name__ == "__main__":
    main()
