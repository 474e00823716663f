"""Pieces of a text, each around one of several passages, found again to be put together anew."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_RULER = re.compile(r"\n+[^\w\n\0]+\n+")
"""A line of signs alone, such as ---, with the line breaks around it."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Pieces:
    """What stands before all pieces, the pieces, what is between each two, and what is after."""

    before: str
    pieces: Sequence[str]
    separator: str
    after: str

    def joined(self, indices: Sequence[int]) -> str:
        """The text with the pieces of *indices* alone, in that order."""
        return self.before + self.separator.join(map(self.pieces.__getitem__, indices)) + self.after


def found_pieces(content: str, texts: Sequence[str], separator: str) -> Pieces | None:
    """The pieces of *content* around *texts*, parted by *separator* or what else parts them.

    That may be a line of signs, line breaks, or whatever stands between all texts alike.
    """
    for wanted in (texts, [text.strip() for text in texts]):
        if (bounds := _bounds(content, [text for text in wanted if text])) is None:
            continue
        if not all(wanted):  # nobody can say where nothing stands
            return _around_nothing(content, bounds, wanted, separator)
        for one in _separators(content, bounds, separator):
            if (found := _parted(content, bounds, one)) is not None:
                return found
        return _alike(content, bounds)
    return None


def _around_nothing(
    content: str, bounds: Sequence[tuple[int, int]], texts: Sequence[str], own: str
) -> Pieces | None:
    """As many pieces as *texts*, some of them empty, with nothing before and after all."""
    masked = content
    for start, end in bounds:  # so that no separator is seen in a text
        masked = masked[:start] + "\0" * (end - start) + masked[end:]
    runs = range(max(map(len, re.findall(r"\n+", masked)), default=0), 0, -1)
    breaks = ("\n" * count for count in runs)
    first = (own,) if own.strip("\n") else ()
    for one in dict.fromkeys((*first, *_RULER.findall(masked), *breaks)):
        parts = masked.split(one)
        if ["\0" in part for part in parts] == [bool(text) for text in texts]:
            starts = itertools.accumulate((len(part) + len(one) for part in parts), initial=0)
            pairs = zip(starts, parts, strict=False)
            return Pieces("", [content[it : it + len(part)] for it, part in pairs], one, "")
    return None


def _bounds(content: str, texts: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where each of *texts* stands in *content*, in order, or None."""
    bounds, end = [], 0
    for text in texts:
        start = content.find(text, end)
        if start < 0:
            return None
        end = start + len(text)
        bounds.append((start, end))
    return bounds


def _separators(content: str, bounds: Sequence[tuple[int, int]], own: str) -> Iterator[str]:
    """What may part pieces: the caller's own, lines of signs, line breaks, the most of them first.

    A lone piece is parted from what is before and after it alone.
    """
    gaps = [content[end:start] for (_, end), (start, _) in itertools.pairwise(bounds)]
    if own.strip("\n"):
        yield own
    if not gaps:
        yield from ("\n\n", "\n")
        return
    shared = [ruler for ruler in _RULER.findall(gaps[0]) if all(ruler in gap for gap in gaps)]
    yield from dict.fromkeys(shared)
    longest = min(max(map(len, re.findall(r"\n+", gap)), default=0) for gap in gaps)
    yield from ("\n" * count for count in range(longest, 0, -1))


def _parted(content: str, bounds: Sequence[tuple[int, int]], separator: str) -> Pieces | None:
    """The pieces, where *separator* parts them.

    Between two texts stand the rest of one piece, a separator and the begin of the next. Where that
    is one separator, it is seen; where it is more, the first begin and the last rest, which are
    known, say which.
    """
    head, tail = content[: bounds[0][0]], content[bounds[-1][1] :]
    gaps = [content[end:start] for (_, end), (start, _) in itertools.pairwise(bounds)]
    counts = {gap.count(separator) for gap in gaps} or {1}
    if len(counts) > 1 or 0 in counts:
        return None
    inner = counts.pop() - 1  # separators inside of a piece, before its text and after it
    whole = tail.count(separator)
    if not inner or inner == head.count(separator) + whole:
        rests = [whole if inner else 0]
    else:
        rests = list(range(inner + 1))
    for rest in rests:
        found = _cut(content, bounds, separator, inner - rest, rest)
        if found is not None and (len(rests) == 1 or _uniform(found, content, bounds)):
            return found
    return None


def _cut(
    content: str, bounds: Sequence[tuple[int, int]], separator: str, begin: int, rest: int
) -> Pieces | None:
    """Pieces that have *begin* separators before their text, and *rest* after it."""
    head = content[: bounds[0][0]].split(separator)
    tail = content[bounds[-1][1] :].split(separator)
    if len(head) <= begin or len(tail) <= rest:
        return None
    first = bounds[0][0] - len(separator.join(head[-begin - 1 :]))
    last = bounds[-1][1] + len(separator.join(tail[: rest + 1]))
    pieces, start = [], first
    for (_, end), (following, _) in itertools.pairwise(bounds):
        parts = content[end:following].split(separator)
        stop = end + len(separator.join(parts[: rest + 1]))
        pieces.append(content[start:stop])
        start = stop + len(separator)
    pieces.append(content[start:last])
    return Pieces(content[:first], pieces, separator, content[last:])


def _uniform(found: Pieces, content: str, bounds: Sequence[tuple[int, int]]) -> bool:
    """Whether what stands around the texts is of one form, words aside."""
    texts = [content[start:end] for start, end in bounds]
    around = [piece.partition(text) for piece, text in zip(found.pieces, texts, strict=True)]
    return len({(_WORD.sub("w", it[0]), _WORD.sub("w", it[2])) for it in around}) == 1


def _alike(content: str, bounds: Sequence[tuple[int, int]]) -> Pieces | None:
    """The texts themselves, where the same stands between all of them; of two, around each."""
    head, tail = content[: bounds[0][0]], content[bounds[-1][1] :]
    gaps = {content[end:start] for (_, end), (start, _) in itertools.pairwise(bounds)}
    if len(gaps) > 1:
        return None
    gap = next(iter(gaps), "")
    if len(bounds) == 2:
        if not gap.startswith(tail) or not gap.removeprefix(tail).endswith(head):
            return None
        if _WORD.search(gap.removeprefix(tail).removesuffix(head)):
            return None  # it may be of one of the two alone
    return Pieces(head, [content[start:end] for start, end in bounds], gap, tail)
