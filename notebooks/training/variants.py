"""Small runs that differ from the recipe in one thing each; a table of what each was worth.

    python notebooks/training/variants.py --data ../shared/data --out runs/v --vectors runs/main

Same seed, same number of steps, the same held-out questions of the training sets. The runs are
short, so the table tells which choice learns faster, not where each would end.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

# Pairs cut at 128 tokens make a variant cost a quarter; what is compared is otherwise the recipe.
COMMON = {"--max-length": "128", "--long-share": "0"}
VARIANTS = {
    "recipe, short pairs": "",
    "labels only": "--labelled 1 --teacher-weight 0",
    "teacher only": "--label-weight 0 --pointwise-weight 0 --teacher-weight 1",
    "labels only, nq and squad": "--labelled 1 --teacher-weight 0 --only nq,squad",
    "cosine head for the first half": "--cosine-start 0.5",
    "random negatives": "--hard random",
    "longer pairs (256 tokens)": "--max-length 256",
    "teacher without BM25": "--lexical 0",
    "no squared margins": "--margin-weight 0",
}
HERE = Path(__file__).parent


def run(name: str, options: argparse.Namespace) -> dict:
    """Train one variant, or read what an earlier call left; returns its row."""
    folder = options.out / name.replace(" ", "_").replace(",", "")
    if not (folder / "curves.json").exists():
        given = {
            "--data": options.data,
            "--out": folder,
            "--vectors": options.vectors,
            "--threads": options.threads,
            "--steps": options.steps,
            "--groups": options.steps * 4,
            "--evaluations": 1,
            "--calibration-questions": 0,
            **COMMON,
        }
        command = [
            sys.executable,
            HERE / "train.py",
            *(part for kv in given.items() for part in kv),
        ]
        # An option given twice counts the second time, so a variant may change what is common.
        subprocess.run([*map(str, command), *VARIANTS[name].split()], check=True)
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
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--vectors", type=Path, required=True, help="the folder of a run already made"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    options = parser.parse_args()
    rows = []
    for name in options.only:
        rows.append(run(name, options))
        (HERE / "variants.json").write_text(json.dumps(rows, indent=1) + "\n")
        (HERE / "variants.md").write_text(table(rows))


if __name__ == "__main__":
    main()
