"""Pairs that a network or a tokenizer is tried with before it is trusted."""

from __future__ import annotations

Pairs = list[tuple[str, str]]

_FERRY = " ".join(
    "The ferry crosses the strait four times a day in summer, twice in winter, weather allowing; "
    f"boat {number} carries cars, the others foot passengers and bicycles only."
    for number in range(1, 7)
)

UNEVEN: Pairs = [
    ("how often does the ferry run?", _FERRY),
    ("how often does the ferry run?", "It was repainted in 1987."),
    ("Wer hat das Tor geschossen?", ""),
    ("two words", "Zwei Wörter, deux mots, 二つの言葉."),
]
"""Pairs of unequal lengths, one longer than a sliding window of 128."""

SPELLINGS: Pairs = [
    (" Leading, trailing ", "tabs\tand\n\nlines  and   spaces"),
    ("Números: 12,345.67 & 2026-11-20", "e\u0301 é ﬁ ½ — “quoted” don't"),
    ("ПРИВЕТ, мир", "مرحبا 🙂👩‍👧"),
    ("a_b/c#d@e.f", "x" * 120),
]
"""Pairs that tokenizers built in different ways tend to write differently."""

_QUESTIONS = (
    "why is the sky blue?",
    "how long does a passport renewal take",
    "reset a forgotten password",
    "Was ist die Hauptstadt von Australien?",
)
_PASSAGES = (
    (
        "Air scatters short wavelengths of sunlight more strongly than long ones. Blue light "
        "therefore reaches the eye from every direction, while red light passes almost straight "
        "through."
    ),
    "Routine applications take six to eight weeks, expedited ones two to three.",
    'Open the sign-in page, choose "Forgot password", and follow the link sent to your address.',
    "Canberra ist die Hauptstadt von Australien und liegt zwischen Sydney und Melbourne.",
    "The river rose two metres overnight, and the lower meadow was under water by the morning.",
    "",
)
_LONG_PASSAGE = " ".join(_PASSAGES * 9)


def batches() -> list[Pairs]:
    """Return batches of one pair and of many, short and long, with padding and without."""
    pairs = [(question, passage) for question in _QUESTIONS for passage in _PASSAGES]
    third = _LONG_PASSAGE[: len(_LONG_PASSAGE) // 3]
    long = [(_QUESTIONS[0], _LONG_PASSAGE), (_QUESTIONS[1], third)]
    return [pairs[:1], pairs[5:6], pairs[7:8], pairs[2:5], pairs, long[:1], [*long, pairs[0]]]
