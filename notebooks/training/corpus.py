"""What `prepare.py` wrote, read back: documents, questions, queries, and where each set stands."""

import bz2
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

WEB_FIRST, WEB_LAST = "nq", "openstax"  # the sets of the pool that unlabelled queries are asked of


class Question(NamedTuple):
    """A labelled question; positions are global."""

    text: str
    source: str
    positives: list[int]
    given: list[int]
    listed: list[int]
    answers: list[str]
    held: bool


@dataclass
class Corpus:
    """All texts of a run. Junk passages stand behind the documents."""

    documents: list[str]
    junk: int
    spans: dict[str, tuple[int, int]]
    questions: list[Question]
    real: list[tuple[str, bool]]
    made: list[tuple[str, str, int]]
    answered: list[tuple[str, list[str]]]

    @classmethod
    def load(cls, path: Path) -> "Corpus":
        """Read the file that `prepare.py` wrote."""
        data = json.loads(bz2.decompress(path.read_bytes()))
        spans = {name: (begin, end) for name, begin, end in data["sets"]}
        return cls(
            data["documents"] + data["junk"],
            len(data["documents"]),
            spans,
            [Question(*row) for row in data["questions"]],
            [tuple(r) for r in data["real"]],
            [tuple(r) for r in data["made"]],
            [tuple(r) for r in data["answered"]],
        )

    def pool(self, source: str) -> tuple[int, int]:
        """Where candidates for a query of this set are looked for: the web's sets in one pool."""
        begin, end = self.spans[WEB_FIRST][0], self.spans[WEB_LAST][1]
        inside = begin <= self.spans[source][0] < end
        return (begin, end) if inside else self.spans[source]
