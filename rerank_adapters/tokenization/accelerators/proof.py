"""Texts on which an accelerator must read as `tokenizers` does before it is trusted."""

from __future__ import annotations

from collections.abc import Iterable

from ..probes import PROBE_TEXTS

_STEP = 199
"""Of most alphabets every 199th code point, a prime; the exhaustive test tries all."""

_ROW = 16

_AROUND = (
    *("{}", " {} ", "{}{}", "{} {}", "a{}b", "a {} b", "A{}", "{}a", "1{}2", "_{}_", "-{}-"),
    *("\t{}\n", "\u00a0{}\u3000", "é{}e\u0301", "\u0301{}\u0301", "東{}京", "({}).", "\x00{}\x00"),
    *("##{}", "{}##ing", "'{}'", "🙂{}🙂", "a  {}  b", "{}\u200d", "[{}]", "<{}>"),
)
"""What may stand beside a token's spelling: nothing, blanks, letters, digits, marks."""

_WORDS = (
    *("x" * 99, "x" * 100, "x" * 101, "x" * 5000, "é" * 100, "東" * 200, "ab1" * 40),
    *("unaffable", "##able", "a##able", "don't", "e-mail@x.org", "3.14", "…", "ﬁﬂ", "ſt", "İıI"),
    *("ΣΑΣ σας Σ", "ß ẞ", "Ａ１", "한국어 한", "हिन्दी", "ไทย", "עברית", "مرحبا", "ա", "ქართული"),
    *(
        "👩‍👩‍👧‍👦🏽",
        "🇩🇪🇫🇷",
        "☃\ufe0f",
        "a\u200bb",
        "a\u00adb",
        "a\ufeffb",
        "a\u2028b",
        "a\x0bb\x0cc",
    ),
    *("a\x85b", "\x1c\x1d\x1e\x1f", "\ufffd", "\ufdd0", "\U0010ffff", "\u0300\u0301", "ό", "ό"),
)


_PROSE = (
    'Air scatters short wavelengths of sunlight MORE strongly than long ones; "red" goes through.',
    "Canberra ist die Hauptstadt Australiens & liegt 3,5 Std. südwestlich von Sydney – übrigens.",
    "L'été, où êtes-vous? Números: 12,345.67 € & 2026-11-20; naïve cafés/“quoted” text—don't.",
    "Привет, мир! Ёлка; здравствуйте...  Γειά σου Κόσμε. 東京は日本の首都です。人口は1400万。",
    "def f(x): return {'a_b': x**2, \"c\": [1, 2][0]}  # https://example.org/a?b=c&d=%20e",
)


def proof(spellings: Iterable[str]) -> list[str]:
    """Return some hundreds of texts; *spellings*, what tokens spell, in every position."""
    return [*_written(), *_characters(), *_WORDS, *_spelt(spellings)]


def _written() -> list[str]:
    words = " ".join((*_PROSE, *_WORDS[:2], *_PROSE)).split()
    sizes = range(1, len(words), 7)
    return [*PROBE_TEXTS, *_PROSE, *(" ".join(words[-size:]) for size in sizes)]


def _spelt(spellings: Iterable[str]) -> list[str]:
    texts = []
    for spelling in spellings:
        for form in dict.fromkeys((spelling, spelling.lower())):
            texts += [around.replace("{}", form) for around in _AROUND]
    return texts


def _characters() -> list[str]:
    """ASCII and its neighbours one by one, then samples of all others: alone, between letters."""
    points = [*range(0x250), *range(0x300, 0x370), *range(0x2000, 0x2070)]
    points += range(0x370, 0x3134F, _STEP)
    letters = [chr(point) for point in points if not 0xD800 <= point <= 0xDFFF]
    rows = [letters[start : start + _ROW] for start in range(0, len(letters), _ROW)]
    return [joint.join(row) for row in rows for joint in (" ", "a", "")]
