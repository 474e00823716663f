"""Train the bundled reranker: base weights and data folders in, a Hugging Face folder out.

    python notebooks/training/train.py --data ../shared/data --out runs/main

Seeded. Interrupted, the same command goes on from the last checkpoint. CPU (bfloat16) or CUDA.
"""

import argparse
import json
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import parallel
import torch
from calibration import calibrate, expected_calibration_error
from evaluation import by_set, score_groups
from groups import GroupMaker, Mixture, held_groups
from mining import Group, Union
from recipe import Recipe
from run import Run
from save import save_model
from texts import Texts, with_long_pairs

CHECKPOINT_SECONDS = 240
HELD_PER_SET = 120  # questions kept for development and calibration


def train(run: Run, groups: list[Group], dev: list[Group], texts: Texts) -> None:
    """All steps: a log line each, an evaluation now and then, a checkpoint every few minutes."""
    size, saved = run.recipe.groups_per_step, time.monotonic()
    while run.done < 1:
        begun, before = time.monotonic(), run.done
        first = run.step * size % len(groups)
        entry = run.advance((groups + groups[:size])[first : first + size], texts)
        run.seconds = parallel.gather(run.seconds + time.monotonic() - begun)[0]
        begun = time.monotonic()
        if int(run.done * run.recipe.evaluations) > int(before * run.recipe.evaluations):
            entry["dev"] = evaluate(run, dev, texts)
        run.seconds = parallel.gather(run.seconds + time.monotonic() - begun)[0]
        run.log.append({"step": run.step, "seconds": round(run.seconds, 1), **entry})
        if parallel.rank():
            continue
        report(run, entry)
        if time.monotonic() - saved > CHECKPOINT_SECONDS or run.done >= 1:
            run.save()
            saved = time.monotonic()


def evaluate(run: Run, dev: list[Group], texts: Texts) -> dict[str, float]:
    """nDCG@10 on the development questions; writes the model so far, roughly calibrated."""
    scores = score_groups(run.model, dev, texts, run.recipe.max_length)
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


def prepare(folder: Path, name: str, make: Callable[[], list[Group]]) -> list[Group]:
    """The groups of the run, made once by one worker and kept in its folder."""
    path = folder / f"{name}.pickle"
    if not parallel.rank() and not path.exists():
        path.write_bytes(pickle.dumps(make()))
    parallel.gather(None)  # the others wait for the file
    return pickle.loads(path.read_bytes())


def parse() -> argparse.Namespace:
    """The command line; every field of Recipe and Mixture is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="the folder of this run")
    parser.add_argument(
        "--vectors", type=Path, help="where teacher vectors are kept (default: --out)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    for each in (*fields(Recipe), *fields(Mixture)):
        kind = str if each.name in ("only", "hard") else type(each.default)
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, default=None)
    return parser.parse_args()


def chosen(kind: type, options: argparse.Namespace) -> Recipe | Mixture:
    """The dataclass with the options that were given."""
    given = {f.name: getattr(options, f.name) for f in fields(kind)}
    if isinstance(given.get("only"), str):
        given["only"] = tuple(given["only"].split(","))
    return replace(kind(), **{k: v for k, v in given.items() if v is not None})


def main() -> None:
    """Prepare, train, calibrate, save."""
    options = parse()
    parallel.start()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    recipe, mixture = chosen(Recipe, options), chosen(Mixture, options)
    random.seed(recipe.seed)
    union = Union.load(options.data, options.vectors or options.out, recipe.seed)
    groups = prepare(options.out, "groups", GroupMaker(union, mixture, recipe.seed).make)
    held = prepare(
        options.vectors or options.out,
        "held",
        lambda: held_groups(union, HELD_PER_SET, recipe.dev_depth, recipe.seed),
    )
    dev = development(held, recipe)
    texts = Texts(union, groups + held)
    groups = with_long_pairs(groups, texts, recipe.long_share)
    run = Run(recipe, options.out, options.device)
    run.base = by_set(dev, [list(group.teacher) for group in dev])
    print(len(groups), "groups; base", run.base, flush=True)
    train(run, groups, dev, texts)
    finish(run, mixture, held, texts)


def development(held: list[Group], recipe: Recipe) -> list[Group]:
    """A fixed sample of the held-out questions whose answer was retrieved."""
    rng = random.Random(recipe.seed)
    names = sorted({g.source for g in held})
    dev = []
    for name in names:
        own = [g for g in held if g.source == name and any(g.labels)]
        dev += rng.sample(own, min(recipe.dev_questions, len(own)))
    return dev


def finish(run: Run, mixture: Mixture, held: list[Group], texts: Texts) -> None:
    """Calibrate on one half of held-out questions, measure on the other, write model and log."""
    if not run.recipe.calibration_questions:
        write_facts(run, mixture)
        return
    rng = random.Random(run.recipe.seed + 1)
    sample = rng.sample(held, min(len(held), run.recipe.calibration_questions))
    scores = score_groups(run.model, sample, texts, run.recipe.max_length)
    fit = calibrate(sample[::2], scores[::2])
    error = {
        "before": expected_calibration_error(sample[1::2], scores[1::2], (1.0, 0.0)),
        "after": expected_calibration_error(sample[1::2], scores[1::2], fit),
    }
    if parallel.rank():
        return
    save_model(run.model, run.folder / "model", fit)
    write_facts(run, mixture, calibration=fit, expected_calibration_error=error)
    print("calibration", fit, error, flush=True)


def write_facts(run: Run, mixture: Mixture, **measured: object) -> None:
    """`curves.json`: the recipe, the log of every step and what was measured at the end."""
    recipe = {"recipe": asdict(run.recipe), "mixture": asdict(mixture)}
    pairs = sum(entry["pairs"] for entry in run.log)
    totals = {"steps": run.step, "pairs": pairs, "minutes": round(run.seconds / 60, 1)}
    facts = {**recipe, **totals, **measured, "base": run.base, "log": run.log}
    (run.folder / "curves.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
