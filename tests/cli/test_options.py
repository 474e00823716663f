"""Every option of a model is one of every command that loads one, and reaches the reranker."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from rerank_adapters import InputError, Reranker, RerankerConfig
from rerank_adapters.cli.app import app
from rerank_adapters.config import OPTIONS

GIVEN = {
    "model": ("org/model", "org/model"),
    "revision": ("v1", "v1"),
    "file_name": ("onnx/model_O3.onnx", "onnx/model_O3.onnx"),
    "cache_folder": ("/cache", "/cache"),
    "local_files_only": (True, True),
    "token": ("hf_secret", "hf_secret"),
    "trust_remote_code": (True, True),
    "prompt": ("Find it", "Find it"),
    "template": ("{query} | {document}", "{query} | {document}"),
    "answers": ("yes,no", ("yes", "no")),
    "label": ("1", 1),
    "max_length": ("64", 64),
    "truncation": ("only_second", "only_second"),
    "query_max_tokens": ("9", 9),
    "special_tokens": ("as_text", "as_text"),
    "activation": ("identity", "identity"),
    "on_empty_text": ("drop", "drop"),
    "rerank_count": ("20", 20),
    "rest": ("keep_below", "keep_below"),
    "fuse": ("rrf", "rrf"),
    "early_exit": ("layer=3,keep=15", {"layer": 3, "keep": 15}),
    "backend": ("torch", "torch"),
    "device": ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
    "dtype": ("float16", "float16"),
    "num_workers": ("3", 3),
    "num_threads": ("2", 2),
    "max_batch_tokens": ("100", 100),
    "tokenizer": ("huggingface", "huggingface"),
    "remote": (
        "url=http://localhost:1,dialect=tei",
        {"url": "http://localhost:1", "dialect": "tei"},
    ),
    "max_queue_pairs": ("5", 5),
    "max_queue_tokens": ("50", 50),
    "when_full": ("error", "error"),
}
LIVE = ("windows", "calibration", "cache", "document_tokens")
"""Values of kinds of their own: tests/test_passages.py and tests/test_calibration.py have them."""


class StoppedError(InputError):
    """Raised where a command would load its model."""


@pytest.fixture
def asked(monkeypatch) -> list[RerankerConfig]:
    """The configurations that commands load; none is loaded."""
    configs: list[RerankerConfig] = []

    def from_config(config):
        configs.append(config)
        raise StoppedError("stop")

    monkeypatch.setattr(Reranker, "from_config", from_config)
    return configs


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_reaches_the_reranker(name: str, asked) -> None:
    """In `rerank`; alone it changes nothing else."""
    if name in LIVE:
        return
    typed, expected = GIVEN[name]
    flag = f"--{name.replace('_', '-')}"
    arguments = [flag] if typed is True else [flag, typed]
    result = CliRunner().invoke(app, ["rerank", "q", *arguments], input="a")
    assert isinstance(result.exception, StoppedError), result.output
    assert asked == [RerankerConfig(**{name: expected})]


def test_the_token_comes_from_the_environment(asked) -> None:
    """As huggingface_hub's own does, so that no command line shows it."""
    CliRunner().invoke(app, ["rerank", "q"], input="a", env={"HF_TOKEN": "hf_other"})
    assert asked[0].token == "hf_other"


def test_every_command_that_loads_a_model_takes_its_options() -> None:
    """All of them, or those that finding a model takes."""
    commands = typer.main.get_command(app).commands
    taken = {name: {it.name for it in command.params} for name, command in commands.items()}
    for name in ("search", "rerank", "evaluate", "info"):
        assert set(OPTIONS) - {"document_tokens"} <= taken[name], name
    assert {name for name in taken if "document_tokens" in taken[name]} == {
        *("rerank", "evaluate", "calibrate", "info"),
    }, "where documents have ids"
    apart = {"document_tokens", "calibration", "early_exit", "rest", "fuse"}
    assert set(OPTIONS) - apart <= taken["calibrate"]
    for name in ("tune", "export"):
        assert {"revision", "token", "cache_folder", "local_files_only"} <= taken[name], name


def test_help_is_short_or_long_and_shells_complete() -> None:
    """-h everywhere; completion is typer's."""
    for name in ([], ["search"], ["evaluate"]):
        short, long = (CliRunner().invoke(app, [*name, flag]) for flag in ("-h", "--help"))
        assert short.exit_code == 0
        assert short.output == long.output
    shown = CliRunner().invoke(app, ["--show-completion"], env={"SHELL": "/bin/bash"})
    assert "No such option" not in shown.output
