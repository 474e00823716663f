"""Texts read by nanotoken have the ids that `tokenizers` gives, or are read by `tokenizers`."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import shutil
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from rerank_adapters import ConfigError, MissingDependencyError, Reranker, RerankerConfig
from rerank_adapters.checkpoints import Checkpoint, TextTemplate
from rerank_adapters.loading import bundled
from rerank_adapters.tokenization import EncodedPairs, PairTokenizer, accelerators
from rerank_adapters.tokenization.accelerators import Trusted, accelerated, trusted
from rerank_adapters.tokenization.accelerators.proof import proof
from rerank_adapters.tokenization.literal import as_text
from rerank_adapters.tokenization.probes import PROBES
from rerank_adapters.tokenization.reader import Reader
from tests.checkpoints import PAIRS, build, oracle

from .folders import folder_of
from .test_reader import LONG

installed = pytest.mark.skipif(
    find_spec("nanotoken") is None, reason="nanotoken is not installed: make test brings it"
)

ORACLE_ATOL = 1e-4  # law 1: float32 sums in another order, through two or three layers

WORDPIECE = ("bert", "mpnet")
SPELLINGS = ("[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]")


def both(name: str, **options: Any) -> tuple[PairTokenizer, PairTokenizer]:
    """The tokenizer of a checkpoint, read with tokenizers and with nanotoken."""
    checkpoint = Checkpoint.read(build(name))
    slow, fast = (
        PairTokenizer.from_checkpoint(checkpoint, tokenizer=choice, **options)
        for choice in ("huggingface", "fast")
    )
    assert slow.reads_with.startswith("tokenizers ")
    assert fast.reads_with.startswith("nanotoken ")
    return slow, fast


def same(one: EncodedPairs, other: EncodedPairs) -> None:
    """Equal ids, types, lengths and cuts."""
    np.testing.assert_array_equal(one.batch.lengths, other.batch.lengths)
    np.testing.assert_array_equal(one.batch.input_ids, other.batch.input_ids)
    np.testing.assert_array_equal(one.batch.type_ids, other.batch.type_ids)
    np.testing.assert_array_equal(one.truncated, other.truncated)


# ------------------------------------------------------------------------------------ equal numbers


@installed
@pytest.mark.parametrize("special_tokens", ["as_tokens", "as_text"])
@pytest.mark.parametrize("name", WORDPIECE)
def test_pairs_are_equal_id_for_id(name: str, special_tokens: Any) -> None:
    """Probes, special tokens in texts, and long texts of every kind, cut and whole."""
    spelt = [(f"a {it}", text) for it in SPELLINGS for text in proof([it])[-40:]]
    pairs = [*PROBES, *spelt, *(("the ferry", text) for text in LONG.values())]
    for options in ({"max_length": 128}, {"max_length": 40, "truncation": "only_second"}):
        slow, fast = both(name, special_tokens=special_tokens, **options)
        same(slow.encode(pairs), fast.encode(pairs))
        assert slow.count([text for _, text in pairs]) == fast.count([text for _, text in pairs])


@installed
def test_pairs_in_a_template_are_equal_id_for_id() -> None:
    """Texts are text there, read with what stands beside them."""
    template = TextTemplate("query: ", " document: ", " [SEP]")
    slow, fast = both("bert", template=template, max_length=64)
    pairs = [*PROBES, ("a [SEP] b", "c [CLS]"), ("query: x", LONG["prose"])]
    same(slow.encode(pairs), fast.encode(pairs))


@installed
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_any_text_is_equal_id_for_id(texts: list[str]) -> None:
    """Halves of characters too, which hypothesis leaves out: one is put in by hand."""
    slow, fast = bundled_pair()
    texts = [*texts, texts[0] + "\ud800", "\ud83d\ude00" + texts[0]]
    assert slow.count(texts) == fast.count(texts)
    for one, other in zip(slow.document_ids(texts), fast.document_ids(texts), strict=True):
        np.testing.assert_array_equal(one, other)


@functools.cache
def bundled_pair() -> tuple[PairTokenizer, PairTokenizer]:
    """The bundled model's, read with tokenizers and with nanotoken."""
    checkpoint = Checkpoint.read(bundled.folder())
    slow, fast = (
        PairTokenizer.from_checkpoint(checkpoint, tokenizer=choice)
        for choice in ("huggingface", "fast")
    )
    return slow, fast


@installed
@pytest.mark.parametrize("tokenizer", ["huggingface", "fast"])
@pytest.mark.parametrize("name", WORDPIECE)
def test_law_1_holds_over_both_tokenizers(name: str, tokenizer: Any) -> None:
    """sentence-transformers' scores, within the tolerance of law 1, cuts included."""
    for length in (None, 24):
        config = RerankerConfig(
            model=str(build(name)),
            backend="torch",
            device="cpu",
            max_length=length,
            tokenizer=tokenizer,
            local_files_only=True,
        )
        with Reranker.from_config(config) as reranker:
            scores = reranker.score_pairs(PAIRS)
        np.testing.assert_allclose(
            scores, oracle(build(name), PAIRS, max_length=length), rtol=0, atol=ORACLE_ATOL
        )


@installed
@pytest.mark.long("every code point")
@pytest.mark.parametrize("cased", [False, True])
def test_every_code_point_is_equal_alone_and_between_letters(cased: bool) -> None:
    """Once for each version of either library: the bundled tokenizer, and one that keeps case."""
    tokenizer = Tokenizer.from_file(str(bundled.folder() / "tokenizer.json"))
    if cased:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    fast, reason = accelerated(tokenizer, "fast", SPELLINGS)
    assert fast is not None, reason
    letters = [chr(it) for it in range(0x110000) if not 0xD800 <= it <= 0xDFFF]
    for form in ("{}", "a{}b", "A{} {}b"):
        for start in range(0, len(letters), 20_000):
            texts = [form.replace("{}", letter) for letter in letters[start : start + 20_000]]
            ids = fast.read(texts)
            assert ids is not None, fast.reason
            assert fast._difference(texts, ids) is None


# -------------------------------------------------------------------------------------- what is had


@installed
def test_auto_takes_what_was_proven_and_says_so() -> None:
    """WordPiece by nanotoken; other models by tokenizers, with the reason in info()."""
    with Reranker() as reranker:
        assert reranker.info().details["tokenizer"].startswith("nanotoken ")
    with Reranker(tokenizer="huggingface") as reranker:
        assert reranker.info().details["tokenizer"].startswith("tokenizers ")
    other = PairTokenizer.from_folder(build("roberta"))
    assert "; nanotoken cannot: ModelError: it reads WordPiece, and this is BPE" in other.reads_with


@installed
@pytest.mark.parametrize("name", ["roberta", "xlm_roberta", "modernbert"])
def test_fast_is_refused_where_it_cannot_be_had(name: str) -> None:
    """The error names the reason and the cure."""
    with pytest.raises(ConfigError, match=r"tokenizer .*reads WordPiece.*\"auto\" or \"hugg"):
        PairTokenizer.from_folder(build(name), tokenizer="fast")


@installed
def test_fast_is_refused_where_pairs_are_encoded_whole() -> None:
    """No text is read by itself there."""
    with pytest.raises(ConfigError, match=r"tokenizer must be .*pairs are encoded whole"):
        PairTokenizer.from_folder(folder_of("reversed"), tokenizer="fast")
    assert "pairs are encoded whole" in PairTokenizer.from_folder(folder_of("reversed")).reads_with


def test_without_the_library_auto_is_tokenizers_and_fast_is_an_error(monkeypatch) -> None:
    """The error names the extra."""
    monkeypatch.setattr(accelerators, "find_spec", lambda name: None)
    tokenizer = PairTokenizer.from_folder(build("bert"))
    assert tokenizer.reads_with.startswith("tokenizers ")
    assert ";" not in tokenizer.reads_with
    with pytest.raises(MissingDependencyError, match=r"rerank-adapters\[fast-tokenizers\]"):
        Reranker(tokenizer="fast")


UNSUPPORTED = {
    "normalizer": lambda it: setattr(it, "normalizer", normalizers.Replace("a", "b")),
    "pre_tokenizer": lambda it: setattr(it, "pre_tokenizer", pre_tokenizers.UnicodeScripts()),
}


@installed
@pytest.mark.parametrize("part", UNSUPPORTED)
def test_a_part_that_it_does_not_know_is_left_to_tokenizers(part: str) -> None:
    """It is refused, and the reason is its own words."""
    tokenizer = Tokenizer.from_file(str(build("bert") / "tokenizer.json"))
    UNSUPPORTED[part](tokenizer)
    found, reason = accelerated(tokenizer, "auto", SPELLINGS)
    assert found is None
    assert "nanotoken cannot: UnsupportedTokenizerError" in reason


@installed
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("single_word", [False, True])
@pytest.mark.parametrize("strips", [False, True])
def test_added_tokens_of_every_flag_are_equal_or_left_to_tokenizers(
    normalized: bool, single_word: bool, strips: bool
) -> None:
    """In every position, special or not: what is not read alike is not read by nanotoken."""
    tokenizer = Tokenizer.from_file(str(build("bert") / "tokenizer.json"))
    flags = {"normalized": normalized, "single_word": single_word}
    flags |= {"lstrip": strips, "rstrip": strips}
    tokenizer.add_tokens([AddedToken("Ferry", **flags), AddedToken("<x y>", **flags)])
    tokenizer.add_special_tokens([AddedToken("[Q]", **flags)])
    spelt = ["Ferry", "<x y>", "[Q]", *SPELLINGS]
    found, reason = accelerated(tokenizer, "auto", spelt)
    texts = [*proof(spelt), "Ferry[Q]<x y>Ferry", "the Ferry's [Q][Q] <x y>"]
    reader = Reader(tokenizer, found)
    for text, encoding in zip(texts, reader.fast(texts), strict=True):
        assert reader.ids(text) == encoding.ids, reason
    literal = as_text(tokenizer)
    reader = Reader(literal, accelerated(literal, "auto", spelt)[0])
    for text, encoding in zip(texts, reader.fast(texts), strict=True):
        assert reader.ids(text) == encoding.ids


# ---------------------------------------------------------------------------------- under suspicion


class Liar:
    """An accelerator that reads by tokenizers, and otherwise where it is told to."""

    name = "liar 1.0"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.read_texts = 0
        self.lies = ""
        self.error: BaseException | None = None

    def read(self, texts: Sequence[str]) -> Any:
        if self.error is not None:
            raise self.error
        self.read_texts += len(texts)
        read = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [it.ids for it in read]
        ids = [
            [1, *it] if self.lies and self.lies in text else it
            for text, it in zip(texts, ids, strict=True)
        ]
        bounds = np.cumsum([0, *map(len, ids)])
        return np.array([one for row in ids for one in row], np.uint32), bounds


class PanicException(BaseException):
    """What a panic in Rust is in Python: no Exception."""


@pytest.fixture
def tokenizer() -> Tokenizer:
    """The tiny BERT's."""
    return Tokenizer.from_file(str(build("bert") / "tokenizer.json"))


@pytest.fixture
def own_thread(monkeypatch) -> list[Any]:
    """Checks run at once, in the thread that reads; the list has one entry for each."""
    ran: list[Any] = []

    def at_once(work: Any, *, ticket: Any) -> Any:
        ran.append(work)
        return work()

    monkeypatch.setattr(trusted, "prepare", at_once)
    return ran


def test_a_lie_at_load_is_found_and_named(tokenizer: Tokenizer) -> None:
    """The text is named, and nothing is read by it."""
    liar = Liar(tokenizer)
    liar.lies = "\u0344"  # a mark alone, of which few texts speak
    found = Trusted(tokenizer, liar, SPELLINGS)
    assert "liar 1.0 reads" in found.reason
    assert found.read(["a"]) is None


def test_a_lie_about_a_special_token_is_found(tokenizer: Tokenizer) -> None:
    """Each spelling is tried beside letters, blanks and marks, in lower case too."""
    for lies in ("a[SEP]b", "[sep]\u200d", " [CLS]  b"):
        liar = Liar(tokenizer)
        liar.lies = lies
        assert Trusted(tokenizer, liar, SPELLINGS).reason, lies


def test_a_lie_after_load_ends_it_with_one_warning(
    tokenizer: Tokenizer, monkeypatch, caplog, own_thread
) -> None:
    """The text that shows it, and all after it, are read by tokenizers; the text is not logged."""
    monkeypatch.setattr(trusted, "SHARE", 2)
    liar = Liar(tokenizer)
    found = Trusted(tokenizer, liar, SPELLINGS)
    reader = Reader(tokenizer, found)
    liar.lies = "harbour"
    texts = ["secret harbour", "the ferry"]
    with caplog.at_level(logging.WARNING):
        reader.counts(texts)
        reader.counts(["secret harbour", "a boat"])
    assert len(own_thread) == 1
    (record,) = caplog.records
    assert "scores since load may be inexact" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert found.reason == "liar 1.0 read a text unlike tokenizers"
    before = liar.read_texts
    assert reader.ids("secret harbour") == reader.fast(["secret harbour"])[0].ids
    assert liar.read_texts == before


def test_what_is_dropped_is_named_in_info(monkeypatch, tokenizer: Tokenizer, own_thread) -> None:
    """info() is asked anew: it says what reads texts now, and why."""
    monkeypatch.setattr(trusted, "SHARE", 1)
    liar = Liar(Tokenizer.from_file(str(bundled.folder() / "tokenizer.json")))
    found = Trusted(liar.tokenizer, liar, SPELLINGS)
    monkeypatch.setattr(
        "rerank_adapters.tokenization.pair_tokenizer.accelerated", lambda *_: (found, "")
    )
    with Reranker() as reranker, Reranker(tokenizer="huggingface") as exact:
        assert reranker.info().details["tokenizer"] == "liar 1.0"
        liar.lies = "red"
        reranker.score("how tall is it?", ["It is red.", "It is 70 m tall."])
        told = reranker.info().details["tokenizer"]
        assert told.startswith("tokenizers ")
        assert told.endswith("; liar 1.0 read a text unlike tokenizers")
        again = reranker.score("how tall is it?", ["It is red."])
        np.testing.assert_array_equal(again, exact.score("how tall is it?", ["It is red."]))


@pytest.mark.parametrize("error", [RuntimeError("out"), PanicException("rust"), MemoryError()])
def test_any_failure_ends_it_and_loses_no_text(
    tokenizer: Tokenizer, error: BaseException, caplog
) -> None:
    """The texts of that call are read by tokenizers too."""
    liar = Liar(tokenizer)
    found = Trusted(tokenizer, liar, SPELLINGS)
    reader = Reader(tokenizer, found)
    liar.error = error
    with caplog.at_level(logging.INFO):
        assert reader.ids("the ferry") == reader.fast(["the ferry"])[0].ids
        reader.ids("again")
    assert found.reason.startswith(f"liar 1.0 failed: {type(error).__name__}")
    assert len(caplog.records) == 1


def test_an_interrupt_is_no_failure(tokenizer: Tokenizer) -> None:
    """Ctrl-C goes through, and says nothing against what it interrupted."""
    liar = Liar(tokenizer)
    found = Trusted(tokenizer, liar, SPELLINGS)
    liar.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        found.read(["a"])
    assert not found.reason


def test_one_text_in_so_many_is_compared_off_the_hot_path(
    tokenizer: Tokenizer, monkeypatch
) -> None:
    """Always the same share, however the texts come: 3,000 texts, 6 comparisons, elsewhere."""
    compared: list[tuple[int, str]] = []
    whole = Trusted._difference

    def spy(self: Trusted, texts: Sequence[str], ids: Any) -> int | None:
        compared.extend((threading.get_ident(), text) for text in texts)
        return whole(self, texts, ids)

    found = Trusted(tokenizer, Liar(tokenizer), SPELLINGS)
    monkeypatch.setattr(Trusted, "_difference", spy)
    sizes = [1, 700, 3, 1296, *([1] * 600), 400]
    assert sum(sizes) == 3000
    for size in sizes:
        found.read(["text"] * size)
    for thread in threading.enumerate():
        if thread.name == "rerank-prepare":
            thread.join(10)
    assert len(compared) == -(-3000 // trusted.SHARE) == 6
    assert threading.get_ident() not in {thread for thread, _ in compared}


# ------------------------------------------------------------------------ memory, threads, children


class Caches:
    """nanotoken's tokenizer, and how often its caches were emptied."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.cleared = 0

    def encode_batch(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer.encode_batch(texts, **options)

    def clear_cache(self) -> None:
        self.cleared += 1
        self.tokenizer.clear_cache()


@pytest.fixture
def watched(monkeypatch, tokenizer: Tokenizer) -> tuple[Reader, Caches]:
    """A reader by nanotoken whose caches hold a thousand characters."""
    nanotoken = pytest.importorskip(
        "rerank_adapters.tokenization.accelerators.nanotoken", reason="nanotoken is not installed"
    )
    monkeypatch.setattr(nanotoken, "MOST_CHARACTERS", 1000)
    library = nanotoken.Nanotoken(tokenizer.to_str())
    library._tokenizer = caches = Caches(library._tokenizer)
    return Reader(tokenizer, Trusted(tokenizer, library, ())), caches


def test_caches_are_emptied_when_they_may_be_full(watched: tuple[Reader, Caches]) -> None:
    """By the characters read since the last time: 10,000 of them fill a thousand ten times."""
    reader, caches = watched
    start = caches.cleared
    for number in range(100):
        reader.counts([f"{number:>100}"])
    assert 8 <= caches.cleared - start <= 10


def test_threads_read_alike_while_caches_are_emptied(watched: tuple[Reader, Caches]) -> None:
    """Eight threads, texts of their own, and a cache that is never warm for long."""
    reader, caches = watched
    texts = [[f"{word} number {row}" for word in SPELLINGS * 20] for row in range(40)]
    wanted = [[it.ids for it in reader.fast(row)] for row in texts]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda row: [reader.ids(text) for text in row], texts))
    assert read == wanted
    assert caches.cleared > 40


@installed
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # threads live while this process forks
def test_a_forked_child_reads_too() -> None:
    """It has no thread of its own that a fork could lose."""
    fast = bundled_pair()[1]
    texts = [f"the ferry {number} leaves at noon" for number in range(3000)]
    wanted = sum(fast.count(texts))
    child = os.fork()
    if not child:
        os._exit(0 if sum(fast.count(texts)) == wanted else 1)
    assert os.waitpid(child, 0)[1] == 0


@installed
def test_equal_tokenizers_share_one_and_free_it(tmp_path: Path) -> None:
    """Two leases of one checkpoint hold its tables once, and nothing when both are gone."""
    folder = shutil.copytree(build("bert"), tmp_path / "own")  # no other test may hold its tables
    stated = json.loads((folder / "tokenizer.json").read_text())
    stated["model"]["max_input_chars_per_word"] = 77
    (folder / "tokenizer.json").write_text(json.dumps(stated))
    one, other = (PairTokenizer.from_folder(folder, tokenizer="fast") for _ in range(2))
    assert one._reader.accelerated is other._reader.accelerated
    shared = weakref.ref(one._reader.accelerated)
    del one, other
    gc.collect()
    assert shared() is None


@installed
def test_windows_are_cut_by_tokenizers_offsets() -> None:
    """Spans of a long document are the same with either."""
    document = LONG["mixed"][:6000]
    spans = []
    for choice in ("huggingface", "fast"):
        with Reranker(tokenizer=choice, windows={"tokens": 64, "stride": 48}) as reranker:
            ranking = reranker.rerank("a river in the north", [document, "short"])
            spans.append([(it.index, it.score, it.span) for it in ranking])
    assert spans[0] == spans[1]


def test_a_word_that_is_none_is_refused_by_name() -> None:
    """The library behind "fast" may change."""
    with pytest.raises(ConfigError, match='tokenizer must be one of "auto", "huggingface", "fast"'):
        RerankerConfig(tokenizer="nanotoken")
