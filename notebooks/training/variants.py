"""Small runs that differ from the recipe in one thing each; a table of what each was worth.

    python notebooks/training/variants.py --prepared runs/main/prepared.pickle --out runs/variants

One seed rule: every variant has seed 0, the same prepared groups in the same order, the same number
of steps and the same held-out questions of the training sets. The runs are short, so the table
tells which choice learns faster, not where each would end. Variants of the negatives read what
prepare.py --hard random (and bm25) wrote, and are left out where that is not given.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

# Few short pairs, so that all of them fit an hour of two cores; else the recipe.
COMMON = {"--max-length": "64", "--long-share": "0", "--groups-per-step": "4"}
VARIANTS = {
    "recipe, short pairs": "",
    "labels only": "--no-unlabelled --teacher-weight 0",
    "labels only, nq and squad": "--no-unlabelled --teacher-weight 0 --only nq,squad",
    "teacher only": "--no-labelled",
    "teacher without BM25": "--lexical 0",
    "no squared margins": "--margin-weight 0",
    "cosine head for the first half": "--cosine-start 0.5",
    "longer pairs (128 tokens)": "--max-length 128",
    "half the learning rate": "--learning-rate 1e-4",
    "random negatives": "--prepared RANDOM",
    "BM25's negatives alone": "--prepared BM25",
}
HERE = Path(__file__).parent


def run(name: str, options: argparse.Namespace) -> dict:
    """Train one variant, or read what an earlier call left; returns its row."""
    folder = options.out / name.replace(" ", "_").replace(",", "")
    if not (folder / "curves.json").exists():
        given = {
            "--prepared": options.prepared,
            "--out": folder,
            "--threads": options.threads,
            "--steps": options.steps,
            "--evaluations": 1,
            "--dev-questions": options.questions,
            "--calibration-questions": 0,
            **COMMON,
        }
        command = [
            sys.executable,
            HERE / "train.py",
            *(part for kv in given.items() for part in kv),
        ]
        # An option given twice counts the second time, so a variant may change what is common.
        subprocess.run([*map(str, command), *changed(name, options)], check=True)
    facts = json.loads((folder / "curves.json").read_text())
    dev = facts["log"][-1]["dev"]
    change = VARIANTS[name] or "none"
    return {
        "variant": name,
        "change": change,
        "pairs": facts["pairs"],
        "minutes": facts["minutes"],
        **dev,
    }


def changed(name: str, options: argparse.Namespace) -> list[str]:
    """The variant's options, with None in place of a file of other negatives that is not given."""
    files = {"RANDOM": options.random, "BM25": options.bm25}
    return [files.get(word, word) for word in VARIANTS[name].split()]


def table(rows: list[dict]) -> str:
    """Markdown, one line per variant."""
    sets = [key for key in rows[0] if key not in ("variant", "change", "pairs", "minutes")]
    sets = ["mean", *(s for s in sets if s != "mean")]
    lines = [
        f"| variant | pairs | minutes | {' | '.join(sets)} |",
        "|---|" + "---|" * (len(sets) + 2),
    ]
    for row in rows:
        cells = " | ".join(f"{row[s]:.3f}" for s in sets)
        lines.append(f"| {row['variant']} | {row['pairs']} | {row['minutes']} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """All variants, or those named; the table is rewritten after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", type=Path, required=True, help="what prepare.py wrote")
    parser.add_argument("--random", type=Path, help="the same with --hard random")
    parser.add_argument("--bm25", type=Path, help="the same with --hard bm25")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--questions", type=int, default=12, help="held-out ones of each set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    options = parser.parse_args()
    rows = []
    for name in options.only:
        if None in changed(name, options):
            continue
        rows.append(run(name, options))
        (HERE / "variants.json").write_text(json.dumps(rows, indent=1) + "\n")
        (HERE / "variants.md").write_text(table(rows))


if __name__ == "__main__":
    main()
