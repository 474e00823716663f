"""Train the bundled reranker: base weights and data folders in, a Hugging Face folder out.

    python notebooks/training/train.py --data ../shared/data --run runs/main

Seeded. Interrupted, the same command goes on from the last checkpoint. CPU (bfloat16) or CUDA.
"""

import argparse
import json
import math
import os
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import parallel
import torch
import torch.nn.functional as F
from calibration import calibrate, expected_calibration_error
from groups import GroupMaker, Mixture, held_groups
from mining import Group, Union
from model import (
    MAX_LENGTH,
    base_folder,
    check_packed,
    load_tokenizer,
    logits,
    new_cross_encoder,
    truncate,
)
from save import save_model
from torch import Tensor
from transformers import BertForSequenceClassification

CHECKPOINT_SECONDS = 240
HELD_PER_SET = 120  # questions kept for development and calibration


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides the data.

    minutes: where not 0, the length of the run and its schedule in minutes of training instead of steps;
    the log says how many steps that was on the machine at hand.
    """

    seed: int = 0
    steps: int = 1200
    minutes: float = 0.0
    groups_per_step: int = 4
    learning_rate: float = 1.5e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    label_weight: float = 1.0
    teacher_weight: float = 0.5
    unlabelled_weight: float = 1.0
    margin_weight: float = 0.03
    pointwise_weight: float = 0.2
    max_length: int = MAX_LENGTH
    long_share: float = 0.2
    evaluations: int = 5
    dev_questions: int = 10
    dev_depth: int = 10


class Texts:
    """Token ids of the union's documents and of the groups' queries, without special tokens."""

    def __init__(self, union: Union, groups: list[Group]) -> None:
        """Tokenise once."""
        tokenizer = load_tokenizer(base_folder())
        encoded = tokenizer.encode_batch_fast(union.documents, add_special_tokens=False)
        self.documents = [e.ids[:MAX_LENGTH] for e in encoded]
        queries = sorted({group.query for group in groups})
        encoded = tokenizer.encode_batch_fast(queries, add_special_tokens=False)
        self.queries = {q: e.ids[:MAX_LENGTH] for q, e in zip(queries, encoded, strict=True)}

    def tokens(self, group: Group) -> int:
        """About what the group costs."""
        query = len(self.queries[group.query]) + 3
        return sum(query + len(self.documents[p]) for p in group.candidates)

    def pairs(self, group: Group, limit: int) -> list[tuple[list[int], list[int]]]:
        """The group's (query ids, document ids), cut to `limit` tokens."""
        query = self.queries[group.query]
        return [truncate(query, self.documents[p], limit) for p in group.candidates]


def with_long_pairs(groups: list[Group], texts: Texts, share: float) -> list[Group]:
    """The groups in order, less the short ones that would press long pairs (> 256 tokens) under `share`.

    A group without a long pair is left out whenever the groups kept so far hold too few.
    """
    kept, long, total = [], 0, 0
    for group in groups:
        lengths = [len(q) + len(d) + 3 for q, d in texts.pairs(group, MAX_LENGTH)]
        own = sum(length > 256 for length in lengths)
        if own or long >= share * (total + len(lengths)):
            kept.append(group)
            long, total = long + own, total + len(lengths)
    return kept


def group_loss(z: Tensor, group: Group, recipe: Recipe) -> Tensor:
    """The loss of one group's logits z (k,).

    Unlabelled: KL from the base's distribution, and squared differences of centred logits (MarginMSE:
    Hofstätter et al. 2020, arXiv:2010.02666). Labelled: listwise cross-entropy, the same KL at a lower
    weight, and pointwise cross-entropy, which gives the logit an absolute zero.
    """
    teacher = torch.tensor(group.teacher, device=z.device)
    distilled = F.kl_div(z.log_softmax(0), teacher.log_softmax(0), log_target=True, reduction="sum")
    if not group.labels:
        centred = (z - z.mean()) - (teacher - teacher.mean())
        return recipe.unlabelled_weight * (distilled + recipe.margin_weight * centred.square().mean())
    labels = torch.tensor(group.labels, dtype=z.dtype, device=z.device)
    loss = recipe.pointwise_weight * F.binary_cross_entropy_with_logits(z, labels)
    if labels.any():
        chosen = -(labels * z.log_softmax(0)).sum() / labels.sum()
        loss = loss + recipe.label_weight * chosen + recipe.teacher_weight * distilled
    return loss


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
            weights, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
        )
        self.step, self.log, self.seconds = 0, [], 0.0
        if self.checkpoint.exists():
            self.restore()

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the state whole or not at all."""
        state = {
            "recipe": asdict(self.recipe), "step": self.step, "log": self.log, "seconds": self.seconds,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "torch": torch.get_rng_state(),
        }  # fmt: skip
        torch.save(state, self.checkpoint.with_suffix(".new"))
        os.replace(self.checkpoint.with_suffix(".new"), self.checkpoint)

    def restore(self) -> None:
        """Take up the state of a checkpoint made with the same recipe."""
        state = torch.load(self.checkpoint, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise SystemExit(f"`--run` holds a checkpoint of another recipe: {state['recipe']}")
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
        share = done / warm if done < warm else 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))
        return self.recipe.learning_rate * max(share, 1e-3)

    def advance(self, groups: list[Group], texts: Texts) -> dict[str, float]:
        """One optimiser step over the groups; returns mean losses of labelled and unlabelled ones."""
        groups = parallel.share(groups, [texts.tokens(g) for g in groups])
        pairs = [pair for group in groups for pair in texts.pairs(group, self.recipe.max_length)]
        z = logits(self.model, pairs).split([len(g.candidates) for g in groups])
        losses = [group_loss(part, g, self.recipe) for part, g in zip(z, groups, strict=True)]
        for options in self.optimizer.param_groups:
            options["lr"] = self.rate()
        self.optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()
        parallel.average(p.grad for p in self.model.parameters() if p.grad is not None)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return merged(parallel.gather(summary(losses, groups, pairs)))


def merged(parts: list[dict[str, float]]) -> dict[str, float]:
    """The workers' summaries as one: means of losses, sums of counts."""
    whole = {}
    for key in sorted({k for part in parts for k in part}):
        values = [part[key] for part in parts if key in part]
        whole[key] = sum(values) if key in ("pairs", "tokens") else round(sum(values) / len(values), 4)
    return whole


def summary(losses: list[Tensor], groups: list[Group], pairs: list) -> dict[str, float]:
    """What the log keeps of a step."""
    kinds = {"labelled": [], "unlabelled": []}
    for loss, group in zip(losses, groups, strict=True):
        kinds["labelled" if group.labels else "unlabelled"].append(float(loss.detach()))
    means = {k: round(sum(v) / len(v), 4) for k, v in kinds.items() if v}
    return means | {"pairs": len(pairs), "tokens": sum(len(q) + len(d) + 3 for q, d in pairs)}


@torch.inference_mode()
def score_groups(
    model: BertForSequenceClassification, groups: list[Group], texts: Texts, limit: int
) -> list[list[float]]:
    """Logits of every group's candidates, computed in order of length, shared between the workers."""
    mine = groups[parallel.rank() :: parallel.world()]
    pairs = [pair for group in mine for pair in texts.pairs(group, limit)]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    flat = [0.0] * len(pairs)
    for begin in range(0, len(order), 32):
        rows = order[begin : begin + 32]
        for row, z in zip(rows, logits(model, [pairs[i] for i in rows]).tolist(), strict=True):
            flat[row] = z
    numbers = iter(flat)
    parts = parallel.gather([[next(numbers) for _ in group.candidates] for group in mine])
    return [parts[i % len(parts)][i // len(parts)] for i in range(len(groups))]


def ndcg(scores: list[float], labels: tuple[int, ...], depth: int = 10) -> float:
    """nDCG at `depth` within the list, binary labels; ties keep their order."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    gain = sum(labels[i] / math.log2(at + 2) for at, i in enumerate(order[:depth]))
    ideal = sum(1 / math.log2(at + 2) for at in range(min(depth, sum(labels))))
    return gain / ideal


def by_set(groups: list[Group], scores: list[list[float]]) -> dict[str, float]:
    """Mean nDCG@10 of each set's groups, and `mean` over the sets."""
    names = sorted({g.source for g in groups})
    table = {}
    for name in names:
        values = [ndcg(s, g.labels) for g, s in zip(groups, scores, strict=True) if g.source == name]
        table[name] = round(sum(values) / len(values), 4)
    return table | {"mean": round(sum(table.values()) / len(table), 4)}


def train(run: Run, groups: list[Group], dev: list[Group], texts: Texts) -> None:
    """All steps, with a log line each, an evaluation now and then and a checkpoint every few minutes."""
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
    """nDCG@10 on the development questions; the model so far, roughly calibrated, is written beside."""
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
    return pickle.loads(path.read_bytes())  # noqa: S301 (our own file of this very run)


def parse() -> argparse.Namespace:
    """The command line; every field of Recipe and Mixture is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--run", type=Path, required=True, help="the folder of this run")
    parser.add_argument("--vectors", type=Path, help="where teacher vectors are kept (default: --run)")
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
    options.run.mkdir(parents=True, exist_ok=True)
    recipe, mixture = chosen(Recipe, options), chosen(Mixture, options)
    random.seed(recipe.seed)
    union = Union.load(options.data, options.vectors or options.run, recipe.seed)
    groups = prepare(options.run, "groups", GroupMaker(union, mixture, recipe.seed).make)
    held = prepare(
        options.run, "held", lambda: held_groups(union, HELD_PER_SET, recipe.dev_depth, recipe.seed)
    )
    dev = development(held, recipe)
    texts = Texts(union, groups + held)
    groups = with_long_pairs(groups, texts, recipe.long_share)
    print(len(groups), "groups; base", by_set(dev, [list(g.teacher) for g in dev]), flush=True)
    run = Run(recipe, options.run, options.device)
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
    rng = random.Random(run.recipe.seed + 1)
    sample = rng.sample(held, min(len(held), 320))
    scores = score_groups(run.model, sample, texts, run.recipe.max_length)
    fit = calibrate(sample[::2], scores[::2])
    error = {
        "before": expected_calibration_error(sample[1::2], scores[1::2], (1.0, 0.0)),
        "after": expected_calibration_error(sample[1::2], scores[1::2], fit),
    }
    if parallel.rank():
        return
    save_model(run.model, run.folder / "model", fit)
    facts = {
        "recipe": asdict(run.recipe), "mixture": asdict(mixture), "calibration": fit,
        "expected_calibration_error": error, "log": run.log,
    }  # fmt: skip
    (run.folder / "curves.json").write_text(json.dumps(facts))
    print("calibration", fit, error, flush=True)


if __name__ == "__main__":
    main()
