"""The table that choices were made by: every run of a lease, by kind of held-out question.

    python notebooks/training/variants.py

One seed rule: seed 0, the same groups in the same order, the same held-out questions. Short runs
last three seconds each and show which way a choice pulls at the start; full ones last equally long.
nDCG@10 within each list; `mean` is half the mean of the sets and half that of the web questions,
whose label is an answer string.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
KINDS = ("definition", "amount", "how-to", "keyword", "factoid", "technical", "medical", "legal")


def table(facts: list[dict]) -> str:
    """Markdown, one line per teacher or run."""
    heads = ("run", "steps", "pairs", "mean", "web", *KINDS)
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for fact in facts:
        if "dev" not in fact:
            continue
        dev = fact["dev"]
        name = f"teacher: {fact['teacher']}" if "teacher" in fact else fact["name"]
        name = f"**{name}**" if fact.get("full") else name
        counts = [f"{fact[key]:,}" if key in fact else "–" for key in ("steps", "pairs")]
        values = [dev["mean"], dev["set:answered"], *(dev[f"kind:{kind}"] for kind in KINDS)]
        lines.append(f"| {name} | " + " | ".join([*counts, *(f"{v:.3f}" for v in values)]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = table(json.loads((HERE / "lease.json").read_text()))
    (HERE / "variants.md").write_text(text)
    print(text)
