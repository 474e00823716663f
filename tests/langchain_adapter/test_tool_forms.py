"""What tools write around their documents, found again for any choice and order of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain_core.documents import Document

from rerank_adapters.langchain.tool_content import Forms

Write = Callable[[Sequence[Document]], Any]


def joined(separator: str, one: Callable[[Document], str], around: str = "{}") -> Write:
    return lambda found: around.format(separator.join(map(one, found)))


def as_dict(document: Document) -> dict[str, Any]:
    return {"id": document.id, "found": {"text": document.page_content}}


FORMS: dict[str, Write] = {
    "markdown": joined("\n\n", lambda d: f"## {d.id}\n\n{d.page_content}"),
    "markdown with a foot": joined("\n\n", lambda d: f"## {d.id}\n\n{d.page_content}\n\n*{d.id}*"),
    "bullets": joined("\n- ", lambda d: d.page_content, "Results:\n- {}"),
    "ruler": joined("\n\n---\n\n", lambda d: f"Source: {d.id}\n{d.page_content}"),
    "ruler, close": joined("\n***\n", lambda d: f"{d.page_content} ({d.id})"),
    "ruler, bare": joined("\n---\n", lambda d: d.page_content),
    "three breaks": joined("\n\n\n", lambda d: f"{d.id}: {d.page_content}"),
    "stripped": joined("\n\n", lambda d: f"{d.id}: {d.page_content.strip()}"),
    "spaces": joined(" ", lambda d: d.page_content),
    "tags": joined("", lambda d: f"<doc>{d.page_content}</doc>"),
    "nested tags": joined(
        "\n", lambda d: f"<doc id='{d.id}'>\n{d.page_content}\n</doc>", "<docs>\n{}\n</docs>"
    ),
    "JSON": lambda found: json.dumps(list(map(as_dict, found))),
    "JSON, indented": lambda found: json.dumps(list(map(as_dict, found)), indent=2),
    "JSON object": lambda found: json.dumps({"took": 3, "results": list(map(as_dict, found))}),
    "JSON lines": joined("\n", lambda d: json.dumps(as_dict(d))),
    "one block": lambda found: [
        {"type": "text", "text": "\n\n".join(f"{d.id}: {d.page_content}" for d in found)}
    ],
}

TEXTS = ["Alpha one.", 'Beta "two" é.', "Gamma\n\nthree."]
PADDED = [f"{text} \n" for text in TEXTS]
BLANK = [TEXTS[0], "", TEXTS[2]]
TAKES_BLANK = [
    *("ruler", "ruler, close", "three breaks", "stripped", "one block"),
    *(name for name in FORMS if name.startswith("JSON")),
]


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(text, id=f"d{index}") for index, text in enumerate(texts)]


def check(write: Write, texts: Sequence[str]) -> None:
    """Every choice of every order is written as the tool would have written it."""
    given = documents(texts)
    form = Forms(None, "\n\n", {}).of("tool", write(given), given)
    assert form is not None
    for count in range(1, len(given) + 1):
        for order in itertools.permutations(range(len(given)), count):
            kept = [(index, given[index]) for index in order]
            assert form(kept) == write([given[index] for index in order])


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:2], TEXTS[:1], PADDED], ids=len)
@pytest.mark.parametrize("name", FORMS)
def test_any_choice_is_written_as_the_tool_writes(name: str, texts: list[str]) -> None:
    """Three documents, two, one, and such as end in white space."""
    check(FORMS[name], texts)


@pytest.mark.parametrize("name", TAKES_BLANK)
def test_a_document_without_text_has_its_piece(name: str) -> None:
    """What the tool wrote around nothing stays with it."""
    check(FORMS[name], BLANK)


def test_lines_of_json_end_where_json_says() -> None:
    """Not at U+2028, which Python takes for the end of a line and JSON leaves in a string."""
    write = joined("\n", lambda d: json.dumps(as_dict(d), ensure_ascii=False))
    check(write, ["one\u2028still one", "two"])


@pytest.mark.parametrize(
    "write",
    [
        lambda found: str([one.page_content for one in found]),
        lambda found: f"{len(found)} documents were found.",
        lambda found: f"{found[0].page_content} as seen in {found[1].id}: {found[1].page_content}",
    ],
)
def test_what_would_be_a_guess_is_not_seen(write: Write) -> None:
    """Escaped texts, absent ones, and two with words between that may be of one alone."""
    given = documents(TEXTS[:2])
    assert Forms(None, "\n\n", {}).of("tool", write(given), given) is None
