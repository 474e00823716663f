"""Data folders → everything a training run reads, in one file.

    python notebooks/training/prepare.py --data ../shared/data --out runs/main/prepared.pickle

Seeded. Vectors of the teacher are kept beside the file, so a second preparation is quick.
"""

import argparse
import random
import time
from dataclasses import fields
from pathlib import Path

from groups import GroupMaker, Mixture, held_groups
from mining import Union
from model import MAX_LENGTH, base_folder, load_tokenizer
from prepared import Prepared, TokenIds

HELD_PER_SET, HELD_DEPTH = 150, 30


def prepare(data: Path, keep: Path, mixture: Mixture, seed: int) -> Prepared:
    """Groups, held-out groups and the token ids of what they name."""
    union = Union.load(data, keep, seed)
    maker = GroupMaker(union, mixture, seed)
    held = held_groups(maker, HELD_PER_SET, HELD_DEPTH, seed)
    groups = maker.make()
    return Prepared(groups, held, tokenised(list(maker.queries)), tokenised(union.documents))


def tokenised(texts: list[str]) -> TokenIds:
    """The base tokenizer's ids, each text cut at the longest pair's length."""
    encoded = load_tokenizer(base_folder()).encode_batch_fast(texts, add_special_tokens=False)
    return TokenIds.of([encoding.ids[:MAX_LENGTH] for encoding in encoded])


def main() -> None:
    """Prepare and say what was made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--seed", type=int, default=0)
    for each in fields(Mixture):
        kind = type(each.default)
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, default=each.default)
    options = parser.parse_args()
    random.seed(options.seed)
    begun = time.monotonic()
    mixture = Mixture(**{each.name: getattr(options, each.name) for each in fields(Mixture)})
    made = prepare(options.data, options.out.parent, mixture, options.seed)
    made.save(options.out)
    print(f"{len(made.groups)} groups, {len(made.held)} held, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
