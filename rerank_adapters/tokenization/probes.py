"""Texts that try an encoding before it is trusted."""

from __future__ import annotations

PROBE_TEXTS = (
    "a",
    "",
    " leading and trailing ",
    "Hello, world! It's 12,345.67 (e.g. $9) -- isn't it?",
    "\n\tnew lines\n\n",
    "...",
    "  ",
    "'s",
    "naïve café Å e\u0301 ﬁ ①",
    "東京は日本の首都です。",
    "_Привет мир_",
    "مرحبا",
    "👩‍👩‍👧 🇩🇪 ok",
    "\u0301mark first",
    "12",
    "\r\nx" + "y" * 120,
    "nul\x00 bell\x07",
    "<b>html</b> & </s> [SEP]",
)
"""Every kind of character a rule may look at where texts meet: blanks, letters, digits, marks."""

PROBES = [
    (query, document)
    for step in (0, 3, 7)
    for query, document in zip(PROBE_TEXTS, PROBE_TEXTS[step:] + PROBE_TEXTS[:step], strict=True)
]
