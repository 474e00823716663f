"""Standard input to rows: one odd line breaks no other."""

from __future__ import annotations

import json

import pytest

from rerank_adapters import InputError
from rerank_adapters.cli.console import emit
from rerank_adapters.cli.lines import rows

ODD = "the fare is 14 pounds\n{% if fare %}\n[1]\n{}\n\n  \nbread"


def texts(data: bytes | str, *options) -> list[str]:
    """The texts in *data*."""
    raw = data.encode() if isinstance(data, str) else data
    return [row["text"] for row in rows(raw, "text", *options)]


def test_the_first_line_decides(capsys) -> None:
    """Plain lines stay plain, whatever they begin with; among JSON lines an odd one is a text."""
    plain = ["the fare is 14 pounds", "{% if fare %}", "[1]", "{}", "bread"]
    assert texts(ODD) == texts(ODD, "text") == plain
    assert texts('{"text": "a"}\n{"text": "b"}', "text") == ['{"text": "a"}', '{"text": "b"}']
    assert capsys.readouterr().err == ""
    odd = '{"text": "a", "id": 1}\n{% if %}\n{"id": 3}\n{"text": null, "id": 4}\n"x"'
    found = rows(odd.encode(), "text")
    assert found == [
        {"text": "a", "id": 1},
        {"text": "{% if %}"},
        {"text": "", "id": 3},
        {"text": "", "id": 4},
        {"text": '"x"'},
    ]
    notes = capsys.readouterr().err.splitlines()
    assert [note.split(": ")[1] for note in notes] == [
        "line 2 is no JSON object",
        "line 3 has no text under 'text'",
        "line 4 has no text under 'text'",
        "line 5 is no JSON object",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"text": "a"}\n{bad', "line 2 must be a JSON object"),
        ('{"text": "a"}\n{"text": 3}', "line 2 must have a text under 'text'"),
        ("plain", "line 1 must be a JSON object"),
        (f'{{"text": "a"}}\n{"[" * 100_000}', "line 2 must be a JSON object"),
    ],
)
def test_jsonl_is_strict(data: str, message: str) -> None:
    """Where it was said, what is no object with a text is named by its line."""
    with pytest.raises(InputError, match=message):
        texts(data, "jsonl")


def test_an_array_is_rows_too() -> None:
    """Of texts, of objects, over many lines; what only begins like one is text."""
    assert texts('["a", "b"]') == ["a", "b"]
    assert texts('[{"text": "a"},\n {"text": "b"}]') == ["a", "b"]
    assert texts("[a note]\nbread") == ["[a note]", "bread"]
    assert texts("") == texts("\n") == texts("[]") == []
    assert texts("[" * 100_000) == ["[" * 100_000]


def test_letters_of_other_encodings_are_read(capsys) -> None:
    """UTF-8 with its mark, UTF-16 as PowerShell pipes it, and one line of Windows' letters."""
    assert texts("naïve\r\ncafé".encode("utf-8-sig")) == ["naïve", "café"]
    assert texts("naïve\r\ncafé".encode("utf-16")) == ["naïve", "café"]
    assert capsys.readouterr().err == ""
    assert texts("naïve\n".encode() + "café".encode("cp1252")) == ["naïve", "café"]
    assert "line 2 is no UTF-8" in capsys.readouterr().err


def test_numbers_that_json_lacks_are_null(capsys) -> None:
    """Python's own writes NaN and Infinity; whoever reads the answer may not."""
    row = json.loads('{"a": [NaN, {"b": -Infinity}], "c": 1e999, "d": "NaN", "e": 1.5}')
    emit(row)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": [None, {"b": None}],
        "c": None,
        "d": "NaN",
        "e": 1.5,
    }
