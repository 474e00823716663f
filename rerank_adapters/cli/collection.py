"""Judged collections on disk, in BEIR's form or TREC's: documents, queries, judgements, runs.

BEIR: Thakur et al., 2021, arXiv:2104.08663. TREC: trec_eval's README; tab-separated
collections as in MS MARCO (Nguyen et al., 2016, arXiv:1611.09268).
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import InputError

Record = tuple[str, str]
Row = tuple[str, float]
Run = dict[str, list[Row]]
Qrels = dict[str, dict[str, int]]

CORPUS = ("corpus.jsonl", "corpus.tsv", "collection.tsv", "corpus.trec")
QUERIES = ("queries.jsonl", "queries.tsv", "topics.tsv", "topics.trec", "topics.txt")


@dataclass(frozen=True, slots=True)
class Collection:
    """Judged queries, and documents that are read from disk one at a time."""

    queries: dict[str, str]
    qrels: Qrels
    documents: Documents


@dataclass(frozen=True, slots=True)
class _Form:
    """How one kind of file is cut into records, and what a record says: (id, text)."""

    last_line: re.Pattern[bytes] | None
    parse: Callable[[bytes], Record]

    def read(self, lines: IO[bytes]) -> bytes:
        """The next record, b"" at the end of the file."""
        record = line = lines.readline()
        while line and self.last_line is not None and not self.last_line.search(line):
            line = lines.readline()
            record += line
        return record


def _json(record: bytes) -> Record:
    row = json.loads(record)
    name = str(row["_id"] if "_id" in row else row["id"])
    return name, f"{row.get('title') or ''} {row.get('text') or ''}".strip()


def _tabs(record: bytes) -> Record:
    name, *rest = record.decode().strip("\r\n").split("\t")
    if not rest:
        raise ValueError(record)
    return name, " ".join(rest).strip()


def _sgml(name: str, text: str) -> Callable[[bytes], Record]:
    name_of = re.compile(name, re.IGNORECASE)
    text_of = re.compile(text, re.IGNORECASE | re.DOTALL)

    def parse(record: bytes) -> Record:
        whole = record.decode()
        found, body = name_of.search(whole), text_of.search(whole)
        if found is None or body is None:
            raise ValueError(record)
        bare = re.sub(r"<[^>]*>", " ", body[1])
        return found[1], " ".join(html.unescape(bare).split())

    return parse


JSONL = _Form(None, _json)
TABS = _Form(None, _tabs)
DOCUMENTS = _Form(
    re.compile(rb"</DOC>", re.IGNORECASE),
    _sgml(r"<DOCNO>\s*(\S+?)\s*</DOCNO>", r"</DOCNO>(.*)</DOC>"),
)
TOPICS = _Form(
    re.compile(rb"</top>", re.IGNORECASE),
    _sgml(r"<num>\s*(?:Number:)?\s*([^\s<]+)", r"<title>\s*(?:Topic:)?(.*?)(?=<|\Z)"),
)


def _form(file: Path, sgml: _Form) -> _Form:
    with file.open("rb") as lines:
        start = lines.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return JSONL if start == b"{" else sgml if start == b"<" else TABS


def _records(file: Path, form: _Form) -> Iterator[tuple[int, str, str]]:
    """(offset in the file, id, text) of each record. InputError names file and line."""
    with file.open("rb") as lines:
        number, start = 1, 0
        while record := form.read(lines):
            if record.strip():
                yield start, *_parsed(file, form, record, number)
            number += record.count(b"\n")
            start += len(record)


def _parsed(file: Path, form: _Form, record: bytes, number: int) -> Record:
    try:
        return form.parse(record.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        kind = "a JSON object with _id and text" if form is JSONL else "an id and a text"
        shown = record.strip()[:60].decode(errors="replace")
        raise InputError(f"{file}:{number} must be {kind} in UTF-8: got {shown!r}") from error


class Documents:
    """The texts of a corpus by id, kept as offsets in the file, not as text."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._form = _form(file, DOCUMENTS)
        self._offsets: dict[str, int] = {}
        for offset, name, _ in _records(file, self._form):
            if name in self._offsets:
                raise InputError(f"{file} must name each document once: got {name!r} twice")
            self._offsets[name] = offset

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, name: object) -> bool:
        return name in self._offsets

    @property
    def ids(self) -> list[str]:
        """Document ids, in the order of the file."""
        return list(self._offsets)

    def stream(self) -> Iterator[str]:
        """Title and text of every document, in the order of the file, one at a time."""
        return (text for _, _, text in _records(self._file, self._form))

    def texts(self, ids: Sequence[str]) -> list[str]:
        """Title and text of each of *ids*. InputError names an id the corpus lacks."""
        for name in ids:
            if name not in self._offsets:
                raise InputError(f"run names a document that is not in {self._file}: got {name!r}")
        with self._file.open("rb") as lines:
            return [self._at(lines, self._offsets[name]) for name in ids]

    def _at(self, lines: IO[bytes], offset: int) -> str:
        lines.seek(offset)
        return self._form.parse(self._form.read(lines).removeprefix(b"\xef\xbb\xbf"))[1]


def read_collection(
    folder: Path,
    *,
    split: str | None = None,
    corpus: Path | None = None,
    queries: Path | None = None,
    qrels: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Collection:
    """The collection in *folder*, or in the files named; only judged queries are kept.

    Documents and queries are JSONL, tab-separated or TREC SGML, told apart by their first letter.
    *split* picks qrels/*split*.tsv; without it qrels.tsv comes before qrels/test.tsv.
    *tell* is told of judgements that name no document here, or find none relevant. InputError
    names a file that is missing or malformed, and ids that do not match at all.
    """
    judged = qrels or qrels_file(folder, split)
    asked = queries or _first(folder, "queries", QUERIES)
    documents = Documents(corpus or _first(folder, "documents", CORPUS))
    judgements = read_qrels(judged, tell)
    texts = {name: text for name, text in read_queries(asked).items() if name in judgements}
    if not texts:
        raise InputError(f"qrels must judge some of the queries: {judged} judges none of {asked}")
    _check_judgements(judged, {query: judgements[query] for query in texts}, documents, tell)
    unasked = len(judgements) - len(texts)
    if unasked:
        tell(f"{unasked} of {len(judgements)} judged queries are not in {asked}")
    return Collection(texts, judgements, documents)


def _check_judgements(
    file: Path, judgements: Qrels, documents: Documents, tell: Callable[[str], None]
) -> None:
    """Tell what would make every measure low without being the ranking's fault."""
    named = {name for grades in judgements.values() for name in grades}
    absent = sorted(name for name in named if name not in documents)
    if len(absent) == len(named):
        raise InputError(
            f"qrels must judge some of the documents: {file} judges none of them, but "
            f"{', '.join(map(repr, absent[:3]))}"
        )
    if absent:
        tell(
            f"{len(absent)} of {len(named)} judged documents are not in the corpus, such as "
            f"{', '.join(map(repr, absent[:3]))}: no ranking can find them"
        )
    barren = [query for query, grades in judgements.items() if max(grades.values()) <= 0]
    if len(barren) == len(judgements):
        raise InputError(f"qrels must find some documents relevant: every grade of {file} is 0")
    if barren:
        tell(f"{len(barren)} of {len(judgements)} queries have no relevant document: they count 0")


def qrels_file(data: Path, split: str | None = None) -> Path:
    """*data* itself where it is a file, else the judgements in it. InputError: it has none."""
    return data if data.is_file() else _first(data, "judgements", _qrels_names(split))


def _qrels_names(split: str | None) -> list[str]:
    names = [f"qrels/{split or 'test'}.tsv", f"qrels.{split or 'test'}.txt"]
    return names if split else ["qrels.tsv", "qrels.txt", *names]


def _first(folder: Path, kind: str, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"DATA must hold {kind} ({', '.join(names)}): {str(folder)!r} has none")


def read_queries(file: Path) -> dict[str, str]:
    """Query texts by id. InputError names the file, and a query without text."""
    texts: dict[str, str] = {}
    for _, name, text in _records(file, _form(file, TOPICS)):
        if not text:
            raise InputError(f"{file} must have a text for every query: {name!r} has none")
        if texts.get(name, text) != text:
            raise InputError(f"{file} must name each query once: got {name!r} with two texts")
        texts[name] = text
    return texts


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank. InputError where one is no UTF-8."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise InputError(f"{file}:{number} must be UTF-8 text: {error}") from error
            if text:
                yield number, text


def read_qrels(file: Path, tell: Callable[[str], None] = lambda _: None) -> Qrels:
    """Judgements by query: BEIR's three columns (a header is passed over) or TREC's four.

    *tell* is told of a document judged twice for one query: the last judgement stands.
    """
    qrels: Qrels = {}
    twice: list[str] = []
    for number, line in _lines(file):
        parts = line.split("\t") if "\t" in line else line.split()
        if number == 1 and not re.fullmatch(r"-?\d+", parts[-1]):
            continue
        try:
            query, *_, document, grade = parts
            if qrels.setdefault(query, {}).setdefault(document, int(grade)) != int(grade):
                twice.append(f"{query} {document}")
            qrels[query][document] = int(grade)
        except ValueError as error:
            raise InputError(f"{file}:{number} must be a judgement: got {line[:60]!r}") from error
        if len(parts) > 4:
            raise InputError(f"{file}:{number} must have 3 or 4 columns: got {line[:60]!r}")
    if twice:
        tell(
            f"{file} judges {len(twice)} pairs twice and differently, such as {twice[0]!r}: the "
            "last judgement counts"
        )
    return qrels


def read_run(file: Path, count: int) -> Run:
    """The best *count* documents of each query of a TREC run; equal scores keep their order.

    No more than twice *count* rows per query are held at once.
    """
    run: Run = {}
    seen: dict[str, set[str]] = {}
    for number, line in _lines(file):
        query, document, score = _run_row(file, number, line)
        names, rows = seen.setdefault(query, set()), run.setdefault(query, [])
        if document in names:
            raise InputError(f"{file}:{number} must not repeat {document!r} for query {query!r}")
        names.add(document)
        rows.append((document, score))
        if len(rows) >= 2 * count:
            rows[:] = _best(rows, count)
    return {query: _best(rows, count) for query, rows in run.items()}


def _best(rows: list[Row], count: int) -> list[Row]:
    return sorted(rows, key=lambda row: -row[1])[:count]


def _run_row(file: Path, number: int, line: str) -> tuple[str, str, float]:
    parts = line.split()
    try:
        query, _, document, _, score, _ = parts
        value = float(score)
    except ValueError as error:
        raise InputError(
            f"{file}:{number} must be `query Q0 document rank score tag`: got {line[:60]!r}"
        ) from error
    if not math.isfinite(value):
        raise InputError(f"{file}:{number} must have a finite score: got {score}")
    return query, document, value
