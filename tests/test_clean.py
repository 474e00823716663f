"""What a stranger wrote is shown without being obeyed, and what is secret is not shown."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import sys
import traceback

import pytest
from rich.console import Console
from rich.text import Text

from rerank_adapters import ConfigError, InputError, ModelError, Reranker, RerankerConfig
from rerank_adapters.clean import in_json, lines, message, one_line, withheld
from rerank_adapters.cli import console
from rerank_adapters.errors import MissingDependencyError, OverloadedError
from rerank_adapters.langchain import CrossEncoderCompressor
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.loading.hub import HubModel
from rerank_adapters.ranking import RankedDocument, Ranking

HOSTILE = {
    "a colour": "\x1b[31mred",
    "the window's title": "\x1b]0;owned\x07",
    "the clipboard": "\x1b]52;c;ZXZpbA==\x1b\\",
    "a link": "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\",
    "a C1 sequence": "\x9b31mred",
    "a C1 string": "\x9d0;owned\x9c",
    "backspaces": "good\x08\x08\x08\x08evil",
    "a carriage return": "good\revil",
    "delete": "a\x7fb",
    "an override": "abc\u202ecba",
    "an isolate": "a\u2067b\u2069c",
    "a line separator": "one\u2028two\u2029three",
    "half a letter": "a\udc80b",
}
"""What terminals, editors and viewers of logs obey."""

FORBIDDEN = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))} - {"\n"}
FORBIDDEN |= set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


def obeyed(text: str) -> set[str]:
    return {letter for letter in text if letter in FORBIDDEN or "\ud800" <= letter <= "\udfff"}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_is_obeyed_wherever_it_is_shown(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines, tables, panels, notes, JSON, rankings, errors: one set of rules."""
    text = f"[red]a{HOSTILE[kind]}z[/red]"
    monkeypatch.setattr(console, "Console", lambda **_: Console(file=sys.stdout, width=200))
    console.say(text)
    console.note(text)
    console.table([text and "column"], [[text], [[text, text]], [Text(text)]])
    console.panel(text, text)
    console.emit({"text": text, text: 1})
    ranking = Ranking((RankedDocument(0, 0.5, False),))
    print(ranking.show([text]), ranking.show([text])._repr_html_())
    for error in (ModelError(text), InputError(text), OverloadedError(text, retry_after=1.0)):
        print(error)
    seen = capsys.readouterr()
    assert obeyed(seen.out + seen.err) == set()
    assert seen.out.count("[red]") >= 5  # markup is text


@pytest.mark.parametrize("kind", HOSTILE)
def test_json_keeps_its_value(kind: str) -> None:
    """Escaped is not replaced: a program reads what was there."""
    text = HOSTILE[kind]
    line = in_json(json.dumps({"text": text}, ensure_ascii=False))
    assert json.loads(line) == {"text": text}
    assert obeyed(line) == set()


def test_a_cell_of_a_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A newline in an id makes no row of its own; a list is several lines on purpose."""
    console.table(["query", "score"], [["q1\nq2  0.9", "0.1"], [["a", "b\nc"], "0.2"]])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown == [["query", "score"], ["q1", "q2", "0.9", "0.1"], ["a", "0.2"], ["b", "c"]]


def test_lines_keep_their_layout() -> None:
    """Code stays readable in a panel; one_line joins it."""
    assert lines("def f():\n\treturn 1\x1b") == "def f():\n return 1\ufffd"
    assert one_line("def f():\n\treturn 1\x1b") == "def f(): return 1\ufffd"


@pytest.mark.parametrize("kind", [ModelError, InputError, ConfigError])
def test_an_error_is_one_bounded_line(kind: type[Exception]) -> None:
    """A log has one line of it, however large the file that it quotes."""
    said = str(kind("a\nb\r\n  c" + "x" * 10**6))
    assert said.startswith("a b c")
    assert "\n" not in said
    assert len(said) <= 4001


def test_errors_travel_whole() -> None:
    """Between processes too, with what they carry."""
    for error in (
        ModelError("m"),
        OverloadedError("o", retry_after=2.0),
        MissingDependencyError("torch", "torch"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))


SECRET = "hf_notreallyasecret"
TOLD = {
    "a token": f"no access with {SECRET} here",
    "a header": "header 'Authorization: Bearer abcdef0123456789' is refused",
    "a password": "no answer from https://user:pa55word@mirror.example/x",
}


@pytest.mark.parametrize("kind", TOLD)
def test_secrets_are_withheld_from_messages(kind: str) -> None:
    """Whoever quotes them: they look like what they are."""
    for text in (withheld(TOLD[kind]), message(TOLD[kind]), str(ModelError(TOLD[kind]))):
        assert "***" in text
        assert not any(word in text for word in (SECRET, "abcdef0123456789", "pa55word"))


WRONG = (SECRET.encode(), [SECRET], {"token": SECRET}, (SECRET,))


@pytest.mark.parametrize("token", WRONG, ids=lambda token: type(token).__name__)
@pytest.mark.parametrize(
    "make",
    [RerankerConfig, Reranker, CrossEncoderCompressor, CrossEncoderPostprocessor],
    ids=lambda make: make.__name__,
)
def test_a_token_of_the_wrong_type_is_not_shown(make, token: object) -> None:
    """Neither in the message nor in what the error came from, on every way to pass it."""
    with pytest.raises(ConfigError) as caught:
        make(token=token)
    assert SECRET not in "".join(traceback.format_exception(caught.value, chain=True)).replace(
        f'SECRET = "{SECRET}"', ""
    )
    assert "token must be" in str(caught.value)


def test_a_dict_for_a_configuration_is_not_shown() -> None:
    """It may hold the token."""
    with pytest.raises(ConfigError) as caught:
        Reranker.from_config({"token": SECRET})  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


def test_a_token_that_a_library_quotes_is_not_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    """An HTTP client shows the header that it refuses: it stays out of message, cause and log."""
    secret = "quite-plain-secret"

    def refuse(*_: object, token: str, **__: object) -> None:
        raise ValueError(f"Illegal header value b'Bearer {token}\\n'")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError) as caught:
        HubModel("org/model", None, secret, None, False)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    record = logging.makeLogRecord(
        {"exc_info": (type(caught.value), caught.value, caught.value.__traceback__)}
    )
    handler.handle(record)
    assert "Illegal header value" in str(caught.value)
    assert secret not in log.getvalue() + str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_copy_keeps_its_token_and_a_pickle_does_not() -> None:
    """A copy stays in the process; a pickle may go anywhere."""
    config = RerankerConfig(model="org/model", token=SECRET)
    assert copy.copy(config).token == SECRET
    assert copy.deepcopy([config])[0].token == SECRET
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)).token is None
    assert SECRET.encode() not in pickle.dumps(config)
    assert SECRET not in repr(config)


@pytest.mark.parametrize("kind", [CrossEncoderCompressor, CrossEncoderPostprocessor])
def test_a_copied_adapter_keeps_its_token_and_a_pickle_does_not(kind) -> None:
    """`copy`, `deepcopy` and pydantic's own; repr, dumps and pickles are without it."""
    adapter = kind(model="org/model", token=SECRET)
    for again in (copy.copy(adapter), copy.deepcopy(adapter), adapter.model_copy()):
        token = again.token
        assert (token.get_secret_value() if hasattr(token, "get_secret_value") else token) == SECRET
    assert SECRET not in repr(adapter) + str(adapter) + str(adapter.model_dump())
    assert SECRET.encode() not in pickle.dumps(adapter)
