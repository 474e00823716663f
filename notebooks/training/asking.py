"""Other ways to ask a question: with a slip of the finger, or by its words that carry it."""

import random
import re

_WORDS = (
    "a an the of to in on for and or is are was were be been do does did what which who whom how "
    "when where why that this it its from by with as at about many much can could would should "
    "i my me you your we they he she his her there their have has had"
)
STOP = frozenset(_WORDS.split(" "))
"""Words that a searcher leaves out."""


def typo(text: str, rng: random.Random) -> str:
    """One letter of a longer word swapped with its neighbour, left out, doubled or changed."""
    words = text.split()
    long = [i for i, word in enumerate(words) if len(word) > 3]
    if not long:
        return text
    at = rng.choice(long)
    word, i = words[at], rng.randrange(1, len(words[at]) - 1)
    words[at] = rng.choice((
        word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        word[:i] + word[i + 1 :],
        word[: i + 1] + word[i:],
        word[:i] + rng.choice("etaoinsrhl") + word[i + 1 :],
    ))  # fmt: skip
    return " ".join(words)


def keywords(text: str) -> str:
    """The words that carry the question."""
    kept = [w for w in re.findall(r"[\w'-]+", text) if w.lower() not in STOP]
    return " ".join(kept) or text
