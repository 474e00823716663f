"""All runs in the minutes of one lent machine: build, short variants, full runs, their mean.

    python notebooks/training/lease.py --carry runs/main --out runs/lease --seconds 500

Every full run has the same groups and seed rule and lasts as long. The best by the held-out
questions (`mean`: half the sets, half the web's) is named in `log.json`; its weights lie beside it
as float16 in two parts, the frozen table of words left out.
"""

import argparse
import copy
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from build import Material, build, note, taught
from evaluation import ndcg, table
from model import Student
from recipe import Recipe
from train import Run, judged, train

SHORT = {
    "recipe": {},
    "labels only": {"unlabelled": False, "teacher_weight": 0.0, "margin_weight": 0.0},
    "teacher only": {"label_weight": 0.0},
    "the base alone as teacher": {"members": "maxsim,cosine"},
    "teacher without SPLADE": {"members": "maxsim,cosine,e5,mpnet"},
    "labels twice as heavy": {"label_weight": 1.0},
    "no exit heads": {"exit_weight": 0.0},
    "no pairs above 128 tokens": {"short_length": 128, "max_length": 128},
    "half the learning rate": {"learning_rate": 1e-4},
}
FULL = {
    "recipe": {},
    "twice the learning rate": {"learning_rate": 4e-4},
    "from the base, twice the learning rate": {"start": "base", "learning_rate": 4e-4},
}
PART = 5_600_000  # weights in one file


def one(
    name: str, recipe: Recipe, material: Material, carry: Path, out: Path, device: torch.device
) -> tuple[Student, dict]:
    """One run, judged."""
    taught(material, recipe.members)
    run = Run(recipe, material, carry, out / name.replace(" ", "_").replace(",", ""), device)
    train(run)
    found = {
        "name": name,
        "recipe": asdict(recipe),
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        "pairs": sum(e["pairs"] for e in run.log),
        "tokens": sum(e["tokens"] for e in run.log),
        "log": run.log,
    } | judged(run.mean, material)
    note(
        name,
        found["dev"]["mean"],
        {k: v for k, v in found.items() if k.startswith("exit") or k == "ece"},
    )
    return run.mean, found


def mixed(students: list[Student]) -> Student:
    """The mean of their weights (Wortsman et al. 2022, arXiv:2203.05482)."""
    whole = copy.deepcopy(students[0])
    with torch.no_grad():
        for parts in zip(whole.parameters(), *(s.parameters() for s in students), strict=True):
            parts[0].copy_(torch.stack(parts[1:]).mean(0))
    return whole


def keep(student: Student, path: Path) -> None:
    """The weights but the frozen table as float16, in two files."""
    state = {
        k: v.half().cpu().numpy()
        for k, v in student.state_dict().items()
        if "word_embeddings" not in k
    }
    names, parts, size = list(state), [{}, {}], 0
    for name in names:
        parts[size >= PART][name] = state[name]
        size += state[name].size
    for number, part in enumerate(parts):
        np.savez(path.with_name(f"{path.name}_{number}.npz"), **part)


def kept(options: argparse.Namespace, device: torch.device) -> Material:
    """The material, built once: a second start reads what the first wrote."""
    if options.material and options.material.exists():
        return torch.load(options.material, weights_only=False, map_location=device)
    material = build(options.carry, device, share=options.share)
    if options.material:
        torch.save(material, options.material)
    return material


def main() -> None:
    """Run all; the log is written again after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--carry", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=600, help="from the arrival of the last part"
    )
    parser.add_argument("--short", type=float, default=10, help="seconds of each short run")
    parser.add_argument("--material", type=Path, help="a file to keep what was built in")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device, facts = torch.device(options.device), []
    material = kept(options, device)
    flag = options.carry / "third.ready"
    words = flag.read_text().split() if flag.exists() else []
    begun = flag.stat().st_mtime if words else time.time()
    end = begun + (float(words[1]) if len(words) > 1 else options.seconds)

    def tell() -> None:
        (options.out / "log.json").write_text(json.dumps(facts, indent=1))

    for names in ("", "maxsim,cosine", "maxsim,cosine,e5,mpnet", "maxsim,cosine,e5,splade"):
        taught(material, names)
        own = material.held.groups
        facts.append(
            {
                "teacher": names or "all",
                "dev": table(ndcg(own.teacher, own.labels, own.there), material.held),
            }
        )
        note("teacher", names or "all", facts[-1]["dev"]["mean"])
    for name, change in SHORT.items():
        recipe = replace(Recipe(), seconds=options.short, **change)
        facts.append(one(name, recipe, material, options.carry, options.out / "short", device)[1])
        tell()
    students, length = {}, 0.0
    for left, (name, change) in zip(range(len(FULL), 0, -1), FULL.items(), strict=True):
        if not students:  # all last as long
            length = max(options.short, (end - time.time() - 15) / left - 8)
        recipe = replace(Recipe(), seconds=length, **change)
        students[name], found = one(
            name, recipe, material, options.carry, options.out / "full", device
        )
        facts.append(found | {"full": True})
        keep(students[name], options.out / f"run{len(students)}")
        tell()
    shipped_starts = [s for n, s in students.items() if "base" not in n]
    for name, parts in (
        ("mean of the first two", shipped_starts),
        ("mean of all three", list(students.values())),
    ):
        student = mixed(parts)
        facts.append({"name": name, "full": True} | judged(student, material))
        note(name, facts[-1]["dev"]["mean"])
        students[name] = student
    tell()
    full = [f for f in facts if f.get("full")]
    best = max(full, key=lambda f: f["dev"]["mean"])
    keep(students[best["name"]], options.out / "best")
    facts.append({"best": best["name"]})
    tell()
    (options.out / "done").write_text(best["name"])
    note("best:", best["name"])


if __name__ == "__main__":
    main()
