"""A prompt for each pair gives the tokens of a tokenizer that has that prompt for all pairs."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from rerank_adapters.checkpoints import Checkpoint, TextTemplate
from rerank_adapters.errors import InputError
from rerank_adapters.families import render_template
from rerank_adapters.tokenization import EncodedPairs, PairTokenizer, files, prompts
from tests.checkpoints import LONG_DOCUMENT, LONG_QUERY, PAIRS, build

from .folders import folder_of, tokenizer_of

OWN, OTHER, THIRD = "Given a question, find the answer", "query: ", "Is it so?\n"
MIXED = [(OTHER, None, THIRD, None, OTHER)[row % 5] for row in range(len(PAIRS))]


@functools.cache
def template(prompt: str) -> TextTemplate:
    """The tiny Qwen3's template with *prompt* rendered into it."""
    tokenizer = AutoTokenizer.from_pretrained(build("qwen3"))
    return render_template(
        lambda messages: tokenizer.apply_chat_template(messages, tokenize=False), prompt
    )


def with_prompt(name: str, prompt: str, **options) -> PairTokenizer:
    """The tokenizer *name* that has *prompt* for its own."""
    if name == "qwen3":
        options = {"special_tokens": "as_tokens", **options}
        return PairTokenizer.from_folder(build(name), template=template(prompt), **options)
    return tokenizer_of(name, prompt=prompt, **options)


def assert_rows(encoded: EncodedPairs, expected: dict[str, EncodedPairs], which: list[str]) -> None:
    """Each row is that of the encoding its prompt names, ids, type ids and cut alike."""
    rows = [expected[name].batch.take([row]) for row, name in enumerate(which)]
    assert encoded.batch.lengths.tolist() == [int(row.lengths[0]) for row in rows]
    assert encoded.batch.input_ids.tolist() == [i for row in rows for i in row.input_ids]
    assert encoded.batch.type_ids.tolist() == [i for row in rows for i in row.type_ids]
    cut = [bool(expected[name].truncated[row]) for row, name in enumerate(which)]
    assert encoded.truncated.tolist() == cut


@pytest.mark.parametrize("name", ["bert", "xlm_roberta", "left", "reversed", "qwen3"])
@pytest.mark.parametrize("options", [{}, {"max_length": 120}, {"query_max_tokens": 8}])
def test_prompts_of_pairs_equal_a_tokenizer_of_that_prompt(name: str, options: dict) -> None:
    """Before the query, whole pairs too, and in a chat template; None is the model's own."""
    tokenizer = with_prompt(name, OWN, **options)
    expected = {
        prompt: with_prompt(name, prompt, **options).encode(PAIRS) for prompt in (OWN, OTHER, THIRD)
    }
    which = [prompt or OWN for prompt in MIXED]
    assert_rows(tokenizer.encode(PAIRS, MIXED), expected, which)
    assert_rows(tokenizer.encode(PAIRS, [None] * len(PAIRS)), expected, [OWN] * len(PAIRS))
    assert_rows(tokenizer.encode(PAIRS), expected, [OWN] * len(PAIRS))
    ids = [encoded.batch.input_ids.tolist() for encoded in expected.values()]
    assert ids[0] != ids[1] != ids[2] != ids[0]


def test_an_empty_prompt_drops_the_models_own() -> None:
    """Where prompts stand before the query, none may stand there."""
    dropped = with_prompt("bert", OWN).encode(PAIRS, [""] * len(PAIRS))
    plain = tokenizer_of("bert").encode(PAIRS)
    assert dropped.batch.input_ids.tolist() == plain.batch.input_ids.tolist()


@pytest.mark.parametrize(
    ("slotted", "prompt"), [(False, OTHER), (True, "")], ids=["no slot", "empty"]
)
def test_a_template_that_cannot_take_a_prompt_says_so(slotted: bool, prompt: str) -> None:
    """The error names prompt, the value and the cure; other pairs are not to blame."""
    rendered = template(OWN)
    own = rendered if slotted else TextTemplate(rendered.prefix, rendered.middle, rendered.suffix)
    tokenizer = PairTokenizer.from_folder(build("qwen3"), template=own)
    with pytest.raises(InputError, match=rf"prompt must be None.*got {prompt!r}; load the model"):
        tokenizer.encode(PAIRS[:3], [None, prompt, None])
    assert len(tokenizer.encode(PAIRS[:3], [None] * 3)) == 3


def test_an_error_names_the_pair_as_the_caller_counts_it() -> None:
    """Pairs of one prompt are encoded together, and keep the index they were passed with."""
    tokenizer = with_prompt("qwen3", OWN, max_length=120, truncation="only_second")
    pairs = [("short", LONG_DOCUMENT), ("short", "x"), (LONG_QUERY, "text")]
    with pytest.raises(InputError, match=r"pairs\[2\].*query_max_tokens"):
        tokenizer.encode(pairs, [OTHER, None, OTHER])


def test_as_many_prompts_as_pairs() -> None:
    """A list of another length is a mistake, never a prompt for the wrong pair."""
    for name in ("bert", "qwen3"):
        with pytest.raises(ValueError, match="zip"):
            with_prompt(name, OWN).encode(PAIRS[:3], [OTHER])


def test_a_template_is_split_once_for_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """To find where a template splits takes long: the latest prompts are remembered."""
    made: list[str] = []
    usual = prompts.text_encoder
    tokenizer = with_prompt("qwen3", OWN)

    def counting(reader, template, options, *, plain):
        made.append(template.prefix)
        return usual(reader, template, options, plain=plain)

    monkeypatch.setattr(prompts, "text_encoder", counting)
    for _ in range(3):
        tokenizer.encode(PAIRS[:4], [OTHER, THIRD, OTHER, None])
    assert len(made) == 2
    for number in range(prompts.REMEMBERED):
        tokenizer.encode(PAIRS[:1], [f"prompt {number}"])
    tokenizer.encode(PAIRS[:1], [OTHER])
    assert len(made) == 2 + prompts.REMEMBERED + 1


# ---------------------------------------------------------------------------------- without cuts


@pytest.mark.parametrize("name", ["bert", "left", "reversed", "qwen3"])
def test_uncut_cuts_nothing_and_keeps_the_rest(name: str) -> None:
    """Limits, cuts of the query and of the document alone go; prompt, template and pads stay."""
    limit = 110 if name == "qwen3" else 60  # the template alone takes 80
    own = with_prompt(name, OWN, max_length=limit, truncation="only_second", query_max_tokens=5)
    uncut = own.uncut()
    free = with_prompt(name, OWN, max_length=None)  # longer than these
    pairs = [("the lamp", LONG_DOCUMENT[:250]), (LONG_QUERY[:200], "x")]
    encoded = uncut.encode(pairs)
    assert not encoded.truncated.any()
    assert own.encode(pairs).truncated.all()
    assert encoded.batch.input_ids.tolist() == free.encode(pairs).batch.input_ids.tolist()
    prompted = uncut.encode(pairs, [OTHER, OTHER]).batch.input_ids
    assert prompted.tolist() == free.encode(pairs, [OTHER, OTHER]).batch.input_ids.tolist()
    assert (uncut.pad_id, uncut.pad_side) == (own.pad_id, own.pad_side)
    assert uncut.whole_pairs == own.whole_pairs
    assert len(uncut.encode([(LONG_QUERY * 9, LONG_DOCUMENT * 9)]).batch.input_ids) > 2000


@pytest.mark.parametrize("name", ["bert", "reversed", "qwen3"])
def test_tokenizer_json_is_parsed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of devices: an uncut tokenizer shares what was read."""
    read: list[str] = []

    def from_file(file: str) -> Tokenizer:
        read.append(file)
        return Tokenizer.from_file(file)

    monkeypatch.setattr(files, "Tokenizer", SimpleNamespace(from_file=from_file))
    checkpoint = Checkpoint.read(folder_of(name))
    written = template(OWN) if name == "qwen3" else None
    tokenizer = PairTokenizer.from_checkpoint(checkpoint, template=written)
    uncut = [tokenizer.uncut() for _ in range(3)]
    assert read == [str(folder_of(name) / "tokenizer.json")]
    for each in uncut:
        np.testing.assert_array_equal(
            each.encode(PAIRS[:3]).batch.input_ids, tokenizer.encode(PAIRS[:3]).batch.input_ids
        )
