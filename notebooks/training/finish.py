"""What a lent machine sent back → an ordinary Hugging Face folder of the chosen student.

python notebooks/training/finish.py --lease runs/lease --carry runs/main --out runs/main/model
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from model import Student, check_packed
from save import save_model, starting_weights


def main() -> None:
    """Weights of all but the frozen table from two parts, the table from where the runs started."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lease", type=Path, required=True, help="log.json and the parts of the weights"
    )
    parser.add_argument(
        "--carry", type=Path, required=True, help="the folder that prepare.py wrote"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", default="best", help="which of the runs kept")
    options = parser.parse_args()
    facts = json.loads((options.lease / "log.json").read_text())
    name = (
        facts[-1]["best"]
        if options.run == "best"
        else [f["name"] for f in facts if f.get("full")][int(options.run.removeprefix("run")) - 1]
    )
    student = Student()
    student.start(starting_weights(options.carry, "shipped"))
    state = {}
    for number in range(2):
        with np.load(options.lease / f"{options.run}_{number}.npz") as part:
            state |= {k: torch.from_numpy(part[k].astype(np.float32)) for k in part.files}
    found = student.load_state_dict(state, strict=False)
    if found.unexpected_keys or any("word_embeddings" not in k for k in found.missing_keys):
        raise SystemExit(f"the parts do not make a student: {found}")
    fit = next(f["fit"] for f in facts if f.get("full") and f["name"] == name)
    print(name, fit, check_packed(student))
    save_model(student, options.out, tuple(fit))


if __name__ == "__main__":
    main()
