"""The training sets in one shape: documents, questions, and which document answers which.

Sets come from the folder given on the command line; code and its documentation from the library of
the running interpreter and from PACKAGES, at the versions of `.ci/constraints.txt`.
The measuring sets (SciFact test, nq_qed dev, SelQA test, chunking_eval) are never opened here.
"""

import ast
import csv
import inspect
import json
import random
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

WINDOW_WORDS, WINDOW_STRIDE = 70, 55  # about the length of a web-search passage
PACKAGES = (
    "aiohttp", "huggingface_hub", "joblib", "langchain_core", "matplotlib", "networkx", "nltk",
    "numpy", "rich", "scipy", "sklearn", "sqlalchemy", "tornado",
)  # fmt: skip
"""Documented packages under BSD, MIT, Apache or PSF licences."""
HELD_EVERY = 12  # one question in twelve is held out, for choices and for calibration


@dataclass(frozen=True)
class Question:
    """A query with the positions of its answering documents; `given` are labelled non-answers.

    `listed`: the only candidates, where the set brings its own list. `answers`: strings that give a
    document away as a missed positive.
    """

    text: str
    positives: tuple[int, ...]
    answers: tuple[str, ...] = ()
    given: tuple[int, ...] = ()
    listed: tuple[int, ...] = ()


@dataclass
class RelevanceSet:
    """One training set. A question at position i is held out when i % HELD_EVERY == 0."""

    name: str
    documents: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> int:
        """The position of `text`, which is stored once."""
        if text not in self.positions:
            self.positions[text] = len(self.documents)
            self.documents.append(text)
        return self.positions[text]

    def split(self, *, held: bool) -> list[Question]:
        """The held-out questions, or the others."""
        return [q for i, q in enumerate(self.questions) if (i % HELD_EVERY == 0) is held]


def read_jsonl(path: Path) -> list[dict]:
    """One dict per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def join_punctuation(text: str) -> str:
    """`births ( 2,000 ) .` → `births (2,000).`, undoing NQ's tokenisation."""
    text = re.sub(r"\s+([,.;:!?%)\]}]|'s\b|n't\b|'re\b|'ve\b|'ll\b|'d\b|'m\b)", r"\1", text)
    text = re.sub(r"([(\[{$])\s+", r"\1", text).replace("``", '"').replace("''", '"')
    return re.sub(r"\s+--\s+", " - ", text)


def windows(text: str, words: int = WINDOW_WORDS, stride: int = WINDOW_STRIDE) -> list[str]:
    """Overlapping runs of words; the last one is never a mere overlap."""
    parts = text.split()
    if len(parts) <= words * 1.3:
        return [text]
    return [
        " ".join(parts[at : at + words]) for at in range(0, len(parts) - words + stride, stride)
    ]


def contains(text: str, answers: Iterable[str]) -> bool:
    """Whether an answer string of at least three characters occurs, whatever its case."""
    lowered = text.lower()
    return any(len(a) > 2 and a.lower() in lowered for a in answers)


def _answered(pieces: list[int], found: RelevanceSet, answers: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(p for p in pieces if contains(found.documents[p], answers))


def fragment(document: str, rng: random.Random) -> str:
    """A query made from a document: a sentence, its beginning, or its rarer-looking words."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n+", document) if len(s.split()) > 3]
    if not sentences:
        return " ".join(document.split()[:12])
    sentence = sentences[0] if rng.random() < 0.4 else rng.choice(sentences)
    words = sentence.split()[:30]
    kind = rng.random()
    if kind < 0.35:
        return " ".join(words)
    if kind < 0.6:
        begin = rng.randrange(max(1, len(words) - 6))
        return " ".join(words[begin : begin + rng.randint(4, 10)])
    rare = sorted({w.strip(".,;:()\"'") for w in document.split() if len(w) > 5}, key=str)
    keywords = " ".join(rng.sample(rare, min(len(rare), rng.randint(2, 5))))
    return rng.choice(("{}", "what is {}", "how to {}", "{} meaning", "{}")).format(keywords)


def nq_qed(folder: Path, rng: random.Random) -> Iterator[RelevanceSet]:
    """Real search questions: windows of their paragraphs, and the long paragraphs whole."""
    short, long = RelevanceSet("nq"), RelevanceSet("nq_long")
    for row in read_jsonl(folder / "nq_qed" / "train.jsonl"):
        text = join_punctuation(row["paragraph"])
        title = f"{row['title']}. " if rng.random() < 0.5 else ""
        answers = tuple(join_punctuation(a) for a in row["answer"])
        pieces = [short.add(title + w) for w in windows(" ".join(text.split()[:400]))]
        if found := _answered(pieces, short, answers):
            short.questions.append(Question(row["question"], found, answers))
        if 170 < len(text.split()) < 600:
            where = (long.add(title + text),)
            long.questions.append(Question(row["question"], where, answers))
    yield from (short, long)


def squad(folder: Path, rng: random.Random) -> Iterator[RelevanceSet]:
    """Windows of paragraphs, v2.0's unanswerable questions as negatives, and joined triples."""
    source = folder / "squad_dev"
    short, long = RelevanceSet("squad"), RelevanceSet("squad_long")
    refused = defaultdict(list)  # paragraph text → questions it seems to answer
    texts = {row["_id"]: row["text"] for row in read_jsonl(source / "v2.0" / "corpus.jsonl")}
    for row in read_jsonl(source / "v2.0" / "unanswerable.jsonl"):
        refused[texts[row["unanswerable_paragraph"]].strip()].append(row["text"])
    articles = json.loads((source / "dev-v1.1.reconstructed.json").read_text())["data"]
    for article in articles:
        paragraphs = article["paragraphs"]
        for at, paragraph in enumerate(paragraphs):
            _squad_paragraph(short, paragraph, refused)
            if at % 3 == 0 and rng.random() < 0.6:
                _squad_joined(long, paragraphs[at : at + 3], rng)
    rng.shuffle(short.questions)
    yield from (short, long)


def _squad_paragraph(found: RelevanceSet, paragraph: dict, refused: dict[str, list[str]]) -> None:
    context = paragraph["context"].strip()
    pieces = [found.add(w) for w in windows(context)]
    for qa in paragraph["qas"]:
        answers = tuple(dict.fromkeys(qa["answers"]))
        if positives := _answered(pieces, found, answers):
            found.questions.append(Question(qa["question"], positives, answers))
    for text in refused.get(context, ()):
        found.questions.append(Question(text, (), (), given=tuple(pieces)))


def _squad_joined(found: RelevanceSet, paragraphs: list[dict], rng: random.Random) -> None:
    where = found.add("\n".join(p["context"].strip() for p in paragraphs))
    for qa in rng.sample([qa for p in paragraphs for qa in p["qas"]], 3):
        found.questions.append(Question(qa["question"], (where,), tuple(qa["answers"])))


def ares(folder: Path, rng: random.Random) -> Iterator[RelevanceSet]:
    """Questions a language model wrote over Wikipedia, with answers and non-answers."""
    found, by_query = RelevanceSet("ares"), defaultdict(lambda: ([], []))
    for row in read_jsonl(folder / "ares_synthetic" / "pairs.jsonl"):
        by_query[row["query"]][0 if row["label"] else 1].append(row["passage"])
    for query, (good, bad) in rng.sample(sorted(by_query.items()), min(len(by_query), 5000)):
        if good:
            given = tuple(found.add(p) for p in bad)
            found.questions.append(Question(query, tuple(found.add(p) for p in good), (), given))
    yield found


def covid_qa(folder: Path, _: random.Random) -> Iterator[RelevanceSet]:
    """Expert questions over the chunks of articles."""
    source, found = folder / "covid_qa" / "chunks_120w", RelevanceSet("covid_qa")
    found_at = {row["_id"]: found.add(row["text"]) for row in read_jsonl(source / "corpus.jsonl")}
    yield _with_qrels(found, read_jsonl(source / "queries.jsonl"), source / "qrels.tsv", found_at)


def scifact(folder: Path, _: random.Random) -> Iterator[RelevanceSet]:
    """The training claims over the abstracts; test claims and their labels stay unread."""
    source, found = folder / "scifact", RelevanceSet("scifact")
    found_at = {
        row["_id"]: found.add(f"{row['title']} {row['text']}".strip())
        for row in read_jsonl(source / "corpus.jsonl")
    }
    claims = read_jsonl(source / "train_queries.jsonl")
    yield _with_qrels(found, claims, source / "train_qrels.tsv", found_at)


def _tsv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def _with_qrels(
    found: RelevanceSet, queries: list[dict], qrels: Path, found_at: dict[str, int]
) -> RelevanceSet:
    positives = defaultdict(list)
    for row in _tsv(qrels):
        if row["corpus-id"] in found_at:
            positives[row["query-id"]].append(found_at[row["corpus-id"]])
    for row in queries:
        if row["_id"] in positives:
            found.questions.append(Question(row["text"], tuple(positives[row["_id"]])))
    return found


def medquad(folder: Path, rng: random.Random) -> Iterator[RelevanceSet]:
    """Templated medical questions: all answers of sampled subjects, so that siblings compete."""
    found, by_focus = RelevanceSet("medquad"), defaultdict(list)
    for row in read_jsonl(folder / "medquad" / "qa_pairs.jsonl"):
        by_focus[row["focus"]].append(row)
    for focus in rng.sample(sorted(by_focus, key=str), 2000):
        answers = defaultdict(list)
        for row in by_focus[focus][:6]:
            text = " ".join(re.sub(r"\s+", " ", row["answer"]).split()[:450])
            answers[row["question"]].append(found.add(text))
        found.questions += [Question(q, tuple(where)) for q, where in answers.items()]
    yield found


def selqa(folder: Path, rng: random.Random) -> Iterator[RelevanceSet]:
    """Which sentence of a section answers: the development part, with its own candidate lists."""
    found = RelevanceSet("selqa")
    for row in json.loads((folder / "selqa" / "selqa-ass-dev.json").read_text()):
        listed = tuple(found.add(sentence) for sentence in row["candidates"])
        positives = tuple(listed[i] for i in row["answers"])
        found.questions.append(Question(row["question"], positives, listed=listed))
    rng.shuffle(found.questions)
    yield found


def python_library(_: Path, rng: random.Random) -> Iterator[RelevanceSet]:
    """Code and documentation search over the interpreter's own library (PSF licence)."""
    code, docs = RelevanceSet("python_code"), RelevanceSet("python_docs")
    library = Path(sysconfig.get_paths()["stdlib"])
    _python_modules(library, library, code, docs)
    for key in sorted(topics):
        text = re.sub(r"\n[*=~\-^\"]{4,}\n", "\n", topics[key])
        heading = text.strip().splitlines()[0]
        pieces = tuple(docs.add(w) for w in windows(text, 90, 80)[:8])
        docs.questions.append(Question(f"python {heading}", pieces[:1]))
    yield from (_sampled(code, 2200, rng), _sampled(docs, 1400, rng))


def packages(_: Path, rng: random.Random) -> Iterator[RelevanceSet]:
    """The same over third-party packages: science, plotting, databases, the web."""
    code, docs = RelevanceSet("packages_code"), RelevanceSet("packages_docs")
    site = Path(sysconfig.get_paths()["purelib"])
    for name in PACKAGES:
        _python_modules(site / name, site, code, docs)
    yield from (_sampled(code, 6000, rng), _sampled(docs, 6000, rng))


def _sampled(found: RelevanceSet, count: int, rng: random.Random) -> RelevanceSet:
    """The set with `count` of its questions and the documents that they name."""
    rng.shuffle(found.questions)
    del found.questions[count:]
    return _only_used(found)


def _only_used(found: RelevanceSet) -> RelevanceSet:
    """The set without documents that no question names."""
    used = RelevanceSet(found.name)
    for question in found.questions:
        where = tuple(used.add(found.documents[p]) for p in question.positives)
        used.questions.append(Question(question.text, where))
    return used


def _python_modules(
    folder: Path, root: Path, code: RelevanceSet, docs: RelevanceSet
) -> None:  # fmt: skip
    skipped = {"site-packages", "test", "tests", "idle_test", "_vendor", "vendored"}
    for path in sorted(folder.rglob("*.py")):
        short = path.relative_to(root)
        if not skipped & set(short.parts):
            _python_module(path, short, code, docs)


def _python_module(path: Path, short: Path, code: RelevanceSet, docs: RelevanceSet) -> None:
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings(action="ignore"):  # invalid escapes of other people's code
            tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError):  # templates and codec samples of the library
        return
    module = " ".join(short.with_suffix("").parts).replace("__init__", "").strip()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            text = ast.get_docstring(node)
            if text and len(text.split()) >= 5:
                name = re.sub(r"[_\W]+", " ", re.sub(r"([a-z])([A-Z])", r"\1 \2", node.name))
                _python_entry(node, source, text, f"{module} {name}".lower(), code, docs)


def _python_entry(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
    source: str, text: str, name: str, code: RelevanceSet, docs: RelevanceSet,
) -> None:  # fmt: skip
    first = re.split(r"\n\s*\n|\.\s", text)[0].replace("\n", " ")
    if len(text.split()) > 14:
        body = text if len(text.split()) < 45 else text[len(first) :].lstrip(". \n")
        docs.questions.append(Question(name, (docs.add(" ".join(body.split()[:160])),)))
    lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
    if isinstance(node, ast.ClassDef) or not 4 <= len(lines) <= 70:
        return
    quoted = node.body[0]
    begin, end = quoted.lineno - node.lineno, quoted.end_lineno - node.lineno + 1
    shown = inspect.cleandoc("\n".join(["", *lines[:begin], *lines[end:]]))
    if len(shown.split()) > 8:
        code.questions.append(
            Question(first if len(first.split()) > 3 else name, (code.add(shown),))
        )


LOADERS: tuple[Callable[[Path, random.Random], Iterator[RelevanceSet]], ...] = (
    nq_qed, squad, ares, covid_qa, scifact, medquad, selqa, python_library, packages,
)  # fmt: skip


def load_all(folder: Path, seed: int) -> list[RelevanceSet]:
    """Every training set, the same for the same seed."""
    return [found for load in LOADERS for found in load(folder, random.Random(seed))]
