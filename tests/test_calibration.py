"""Calibration: against other libraries' fits and numbers worked by hand, on every path and form."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from scipy.optimize import minimize
from scipy.special import log_expit
from scipy.stats import binomtest

from rerank_adapters import (
    Calibration,
    ConfigError,
    InputError,
    Reliability,
    Reranker,
    RerankerConfig,
    ScoreCache,
    Threshold,
    sharing,
)
from rerank_adapters.calibration import wilson
from rerank_adapters.futures import done
from rerank_adapters.langchain import CrossEncoderCompressor
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.loading import find
from rerank_adapters.loading.identity import weights_of
from rerank_adapters.scorers.calibrated import Calibrated
from tests.checkpoints import PAIRS, build
from tests.exported import exported
from tests.fakes import CountingBackend, LookupScorer, reranker_over

DOCUMENTS = [f"document number {at}" for at in range(9)]


def sampled(temperature: float, bias: float, count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Logits, and labels drawn by sigmoid(logit / temperature + bias)."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3 * temperature, count)
    shares = 1 / (1 + np.exp(-(logits / temperature + bias)))
    return logits, generator.random(count) < shares


def platt_loss(at: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> float:
    """The cross-entropy with Platt's smoothed labels, term by term."""
    ones, others = labels.sum(), (~labels).sum()
    targets = np.where(labels, (ones + 1) / (ones + 2), 1 / (others + 2))
    sums = at[0] * logits + at[1]
    return float(-np.sum(targets * log_expit(sums) + (1 - targets) * log_expit(-sums)))


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (0.25, 2.0), (30.0, -1.5)])
def test_a_fit_is_the_minimum_that_another_optimiser_finds(temperature: float, bias: float) -> None:
    """Scipy's BFGS on the loss written out anew; within what its own stopping rule leaves."""
    logits, labels = sampled(temperature, bias, 400, seed=1)
    found = Calibration.fit(logits, labels)
    oracle = minimize(platt_loss, [1 / temperature, bias], (logits, labels), tol=1e-10)
    assert 1 / found.temperature == pytest.approx(oracle.x[0], rel=1e-4)
    assert found.bias == pytest.approx(oracle.x[1], rel=1e-3, abs=1e-4)
    mine = platt_loss(np.array([1 / found.temperature, found.bias]), logits, labels)
    assert mine <= oracle.fun + 1e-9
    assert (found.pairs, found.relevant) == (400, int(labels.sum()))


@pytest.mark.parametrize("count", [1, 3, 20])
def test_perfectly_parted_labels_are_worked_by_hand(count: int) -> None:
    """Count at -1 and count at 1: sigmoid(a + b) is (n + 1) / (n + 2), sigmoid(b - a) 1 / (n + 2).

    So b = 0 and a = log(n + 1): Platt's smoothed labels keep it finite.
    """
    found = Calibration.fit([-1.0] * count + [1.0] * count, [0] * count + [1] * count)
    assert 1 / found.temperature == pytest.approx(np.log(count + 1), rel=1e-9)
    assert found.bias == pytest.approx(0, abs=1e-9)
    assert found.scores([1.0])[0] == pytest.approx((count + 1) / (count + 2), rel=1e-6)


@given(st.floats(0.2, 20), st.floats(-2, 2), st.floats(0.01, 1000), st.integers(0, 50))
def test_a_known_temperature_is_recovered_on_any_scale(temperature, bias, scale, seed) -> None:
    """4,000 draws leave a few percent; logits times k have k times the temperature, same scores."""
    logits, labels = sampled(temperature, bias, 4000, seed)
    found = Calibration.fit(logits, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.25)
    assert found.bias == pytest.approx(bias, abs=0.4)
    wide = Calibration.fit(logits * scale, labels)
    assert wide.temperature == pytest.approx(found.temperature * scale, rel=1e-6)
    np.testing.assert_allclose(wide.scores(logits * scale), found.scores(logits), rtol=1e-5)


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30),
    st.floats(1e-6, 1e6),
    st.floats(-100, 100),
)
def test_no_calibration_changes_an_order(logits, temperature, bias) -> None:
    """Scores of higher logits are never lower, equal ones are equal, all lie from 0 to 1."""
    found = Calibration(temperature=temperature, bias=bias).scores(np.array(logits, np.float32))
    rising = found[np.argsort(logits, kind="stable")]
    assert (np.diff(rising) >= 0).all()
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()


REFUSED = [
    ({"temperature": 0}, "calibration.temperature must be a number above 0: got 0"),
    ({"temperature": -2.0}, "calibration.temperature must be a number above 0: got -2.0"),
    ({"temperature": float("nan")}, "calibration.temperature must be a number above 0: got nan"),
    ({"temperature": True}, "calibration.temperature must be a number above 0: got True"),
    ({"bias": float("inf")}, "calibration.bias must be a number: got inf"),
    ({"bias": "1"}, "calibration.bias must be a number: got '1'"),
    ({"weights": "abc"}, "calibration.weights must be a list of str: got 'abc'"),
    ({"model": None}, "calibration.model must be a str: got None"),
    ({"pairs": -1}, "calibration.pairs must be an int of at least 0: got -1"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=str)
def test_bad_values_are_config_errors(arguments, message) -> None:
    """As values, in a mapping, in an option, in a file: one rule."""
    for make in (lambda: Calibration(**arguments), lambda: RerankerConfig(calibration=arguments)):
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([1.0, 2.0], [1], r"logits and labels must be one number for each pair: got shapes \(2,\)"),
        ([], [], "logits and labels must be one number for each pair"),
        ([1.0, float("nan")], [0, 1], "logits must be finite numbers"),
        ([1.0, 2.0], [0, 2], "labels must be 0 or 1, or bool"),
        ([1.0, 2.0], ["no", "yes"], "labels must be 0 or 1, or bool"),
        ([1.0, 2.0], [1, 1], "labels must have relevant and other pairs: got 2 relevant of 2"),
        ([1.0, 2.0], [1, 0], "labels must be 1 where logits tend to be higher"),
        ([2.0, 2.0], [1, 0], "labels must be 1 where logits tend to be higher"),
    ],
)
def test_labels_that_fit_nothing_are_input_errors(logits, labels, message) -> None:
    """A temperature of 0 or less would turn the order around."""
    with pytest.raises(InputError, match=message):
        Calibration.fit(logits, labels)


def test_the_error_is_worked_by_hand() -> None:
    """Two bins of equal width: |0.3 - 1/3| · 3/4 + |0.5 - 1| · 1/4; a bound is the upper bin's."""
    found = Reliability.of([0.1, 0.3, 0.49, 0.5], [0, 1, 0, 1], bins=2)
    assert [(it.low, it.high, it.count) for it in found.bins] == [(0, 0.5, 3), (0.5, 1, 1)]
    first = (0.1 + 0.3 + 0.49) / 3
    assert found.bins[0].score == pytest.approx(first)
    assert found.bins[0].share == pytest.approx(1 / 3)
    wanted = abs(first - 1 / 3) * 3 / 4 + 0.5 / 4
    assert found.expected_calibration_error == pytest.approx(wanted)
    assert Reliability.of([0, 1], [0, 1]).expected_calibration_error == 0
    assert found.bins[0].interval == wilson(1, 3)
    for scores, bins, message in ([[1.5], 2, "scores must lie from 0 to 1"], [[1], 0, "bins must"]):
        with pytest.raises(InputError, match=message):
            Reliability.of(scores, [1], bins=bins)


def test_a_calibrated_model_errs_less() -> None:
    """Overconfident logits, drawn with a temperature of 3: the error falls to that of the draw."""
    logits, labels = sampled(3.0, -1.0, 4000, seed=2)
    before = Reliability.of(Calibration().scores(logits), labels).expected_calibration_error
    after = Reliability.of(Calibration.fit(logits, labels).scores(logits), labels)
    assert before > 0.1
    assert after.expected_calibration_error < 0.02


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (3, 7), (40, 50), (1, 1)])
def test_the_interval_is_scipys(hits: int, count: int) -> None:
    """Wilson's, at two levels."""
    for confidence in (0.95, 0.8):
        wanted = binomtest(hits, count).proportion_ci(confidence, method="wilson")
        np.testing.assert_allclose(wilson(hits, count, confidence), (wanted.low, wanted.high))


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=25),
    st.sampled_from([0.3, 0.5, 2 / 3, 0.9, 1.0]),
)
def test_the_threshold_is_the_lowest_that_keeps_the_precision(rows, precision) -> None:
    """Against every distinct score tried in turn; what it says of itself is so."""
    scores, labels = np.array([row[0] / 8 for row in rows]), np.array([row[1] for row in rows])
    able = [
        bound
        for bound in sorted(set(scores.tolist()))
        if labels[scores >= bound].mean() >= precision - 1e-9
    ]
    found = Threshold.for_precision(scores, labels, precision)
    if not able or not labels.any():
        assert found is None
        return
    kept = scores >= found.score_threshold
    assert kept.tolist() == (scores >= able[0]).tolist()
    assert found.kept == kept.sum()
    assert found.precision == pytest.approx(labels[kept].mean())
    assert found.recall == pytest.approx(labels[kept].sum() / labels.sum())
    assert (found.low, found.high) == wilson(int(labels[kept].sum()), int(kept.sum()))
    assert found.low <= found.precision <= found.high + 1e-12


@pytest.mark.parametrize(
    ("precision", "confidence"), [(0, 0.9), (1.1, 0.9), ("1", 0.9), (0.9, 1), (0.9, 0)]
)
def test_shares_that_are_none_are_input_errors(precision, confidence) -> None:
    """Of the precision and of the interval."""
    with pytest.raises(InputError, match="must be above 0 and"):
        Threshold.for_precision([0.5], [1], precision, confidence=confidence)


# --------------------------------------------------------------------------------------- the file


def test_a_file_holds_what_was_saved(tmp_path: Path) -> None:
    """As JSON that says its format; an option takes its path, the value, or a mapping."""
    saved = Calibration(temperature=2, bias=-1, weights=("abc",), model="m", pairs=3, relevant=1)
    file = saved.save(tmp_path / "calibration.json")
    assert Calibration.load(file) == saved == Calibration.load(str(file))
    content = json.loads(file.read_text())
    assert content == {"format": 1, **saved.to_dict()}
    configs = [
        RerankerConfig(calibration=it)
        for it in (saved, file, str(file), {"temperature": 2, **saved.to_dict()})
    ]
    assert configs == [configs[0]] * 4
    assert len({hash(it) for it in configs}) == 1
    assert [it.name for it in tmp_path.iterdir()] == ["calibration.json"]
    with pytest.raises(ConfigError, match="path must be a file in a folder that can be written"):
        saved.save(tmp_path / "absent" / "calibration.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "calibration must be a file that rerank-adapters calibrate wrote"),
        ("{", "calibration must be a file that rerank-adapters calibrate wrote"),
        ("\ud800", "calibration must be a file that rerank-adapters calibrate wrote"),
        ("[" * 100_000, "calibration must be a file that rerank-adapters calibrate wrote"),
        ("[]", "calibration must be a JSON object with a format"),
        ('{"temperature": 1}', "calibration must be a JSON object with a format"),
        ('{"format": 2}', "calibration must be of format 1 at most"),
        ('{"format": 1, "slope": 2}', "calibration must have known fields alone"),
        ('{"format": 1, "temperature": 0}', "calibration.temperature must be a number above 0"),
        ('{"format": 1, "weights": [1]}', "calibration.weights must be a list of str"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content, message) -> None:
    """By the class that a wrong option has."""
    file = tmp_path / "c.json"
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=message):
        RerankerConfig(calibration=file)


@pytest.mark.parametrize("value", [3, "", " ", {"slope": 1}, ["a"], Calibration])
def test_what_is_no_calibration_is_refused(value: object) -> None:
    """With what it may be."""
    with pytest.raises(ConfigError, match="calibration must be the path of a file"):
        RerankerConfig(calibration=value)


# ------------------------------------------------------------------------------------- the scorer


COLD = Calibration(temperature=0.1, bias=-3.0)


async def test_every_path_gives_calibrated_scores_in_the_old_order() -> None:
    """Scores are those of the logits by hand; indices, ties and truncation are as without."""
    texts = [*DOCUMENTS, DOCUMENTS[0], "tall " * 80]
    with (
        reranker_over(CountingBackend()) as bare,
        reranker_over(CountingBackend(), calibration=COLD) as reranker,
    ):
        logits = bare.score("q", texts)  # FirstLogitFamily: a score is the logit
        wanted = 1 / (1 + np.exp(-(logits.astype(np.float64) / 0.1 - 3.0)))
        plain = bare.rerank("q", texts)
        rankings = [
            reranker.rerank("q", texts),
            *reranker.rerank_many([("q", texts)]),
            *reranker.rerank_iter([("q", texts)]),
            reranker.submit("q", texts).result(60),
            await reranker.arerank("q", texts),
            *await reranker.arerank_many([("q", texts)]),
        ]
        for ranking in rankings:
            assert ranking.indices == plain.indices
            assert [it.truncated for it in ranking] == [it.truncated for it in plain]
            np.testing.assert_allclose(ranking.scores, wanted[ranking.indices], rtol=1e-6)
        np.testing.assert_allclose(reranker.score("q", texts), wanted, rtol=1e-6)
        np.testing.assert_allclose(await reranker.ascore("q", texts), wanted, rtol=1e-6)
        bound = float(np.median(wanted))
        kept = reranker.rerank("q", texts, score_threshold=bound)
        assert kept == rankings[0].top(score_threshold=bound)
        assert 0 < len(kept) < len(texts)
        assert reranker.info().details["calibration"] == "sigmoid(logit / 0.1 - 3)"
        assert "calibration" not in bare.info().details


def test_saturated_scores_keep_the_order_of_the_logits() -> None:
    """Both are 1.0 in float32: they are ranked by what the scores no longer tell."""
    scorer = LookupScorer({("q", "a"): 500.0, ("q", "b"): 900.0})
    with Reranker.over(Calibrated(scorer, Calibration())) as reranker:
        ranking = reranker.rerank("q", ["a", "b"])
    assert (ranking.indices, ranking.scores) == ([1, 0], [1.0, 1.0])


class Stopping(LookupScorer):
    """Its last pair stopped after one layer, with another head's score and logit."""

    def submit_pairs(self, pairs, call):
        scored = super().submit_pairs(pairs, call).result()
        exits = np.array([0] * (len(pairs) - 1) + [1])
        return done(replace(scored, logits=scored.scores * 2, exits=exits))


def test_who_stopped_early_is_neither_calibrated_nor_fitted() -> None:
    """Its logit is of an exit head: the score stays, it stands last, and no label of it counts."""
    table = {("q", "a"): -1.0, ("q", "b"): 1.0, ("q", "c"): 3.0, ("q", "d"): 9.0}
    pairs = list(table)
    with Reranker.over(Calibrated(Stopping(table), COLD)) as reranker:
        scores = reranker.score_pairs(pairs)
        assert scores[:3].tolist() == COLD.scores([-2.0, 2.0, 6.0]).tolist()
        assert scores[3] == 9.0
        assert reranker.rerank("q", list("abcd")).indices == [2, 1, 0, 3]
        fitted = reranker.calibrate(pairs, [0, 1, 1, 0])
    assert fitted == Calibration.fit([-2.0, 2.0, 6.0], [0, 1, 1], model="a table")


def test_off_is_bit_for_bit_and_a_cache_serves_every_calibration() -> None:
    """Law 11; what is cached is uncalibrated: another calibration runs no forward."""
    cache, backend = ScoreCache.memory(bytes=1_000_000), CountingBackend()
    with reranker_over(CountingBackend()) as bare, reranker_over(backend, cache=cache) as off:
        wanted = bare.score("q", DOCUMENTS)
        assert off.score("q", DOCUMENTS).tolist() == wanted.tolist()
    again = CountingBackend()
    with reranker_over(again, cache=cache, calibration=COLD) as on:
        assert on.score("q", DOCUMENTS).tolist() == COLD.scores(wanted).tolist()
    assert (backend.rows, again.rows) == (9, 0)


def test_a_calibrated_reranker_is_calibrated_anew_from_the_same_logits() -> None:
    """What it is calibrated by now is no part of what is fitted."""
    pairs = [("q", text) for text in DOCUMENTS]
    labels = [0, 1, 0, 1, 1, 0, 1, 0, 0]
    with reranker_over(CountingBackend()) as bare:
        logits = bare.score_pairs(pairs)
        labels = [int(it) for it in np.argsort(np.argsort(logits)) > 3]
        labels[int(np.argmax(logits))] = 0
        fitted = bare.calibrate(pairs, labels)
    assert fitted == Calibration.fit(logits, labels, model="CountingBackend")
    with reranker_over(CountingBackend(), calibration=COLD) as cold:
        assert cold.calibrate(pairs, labels) == fitted


# ------------------------------------------------------------------------------------ whose weights


def names(model: Path | str, **options: object) -> tuple[str, ...]:
    return weights_of(find(RerankerConfig(model=str(model), **options)))


def test_forms_of_one_checkpoint_take_one_file_and_others_refuse_it(tmp_path: Path) -> None:
    """Fitted on torch; each graph's scores are its own logits' by the same two numbers."""
    forms = [
        (build("bert"), {"backend": "torch", "device": "cpu"}),
        (exported("bert"), {"backend": "onnx"}),
        (exported("bert", "int8"), {"backend": "onnx", "dtype": "int8"}),
    ]
    with Reranker(build("bert"), backend="torch", device="cpu", activation="identity") as reranker:
        logits = reranker.score_pairs(PAIRS)
        labels = [int(it) for it in logits > np.median(logits)]
        file = reranker.calibrate(PAIRS, labels).save(tmp_path / "calibration.json")
    for model, options in forms:
        with (
            Reranker(model, activation="identity", **options) as bare,
            Reranker(model, calibration=file, **options) as reranker,
        ):
            wanted = Calibration.load(file).scores(bare.score_pairs(PAIRS))
            # the sets of pairs are batched alike, so that nothing but the calibration is between
            np.testing.assert_allclose(reranker.score_pairs(PAIRS), wanted, atol=1e-6)
    for model, options in [(build("bert_two_labels"), forms[0][1]), ("default", {})]:
        with pytest.raises(ConfigError, match="calibration must be of the weights that run"):
            Reranker(model, calibration=file, **options)


def test_a_weight_that_changes_is_another_name_and_configuration_is_not(tmp_path: Path) -> None:
    """Whatever else lies there; a graph without a manifest goes by the weights beside it."""
    folder = Path(shutil.copytree(build("bert"), tmp_path / "model"))
    before = names(folder, backend="torch")
    (folder / "notes.txt").write_text("bought milk")
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert names(folder, backend="torch") == before == names(build("bert"), backend="torch")
    graph = exported("bert") / "model.onnx"
    shutil.copyfile(graph, folder / "model.onnx")
    assert names(folder, backend="onnx") == before
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert names(folder, backend="torch") != before
    (folder / "model.safetensors").unlink()
    alone = names(folder, backend="onnx")
    assert alone not in (before, names(exported("bert"), backend="onnx"))


def test_the_default_model_has_one_name_on_both_backends(tmp_path: Path) -> None:
    """Torch reads what is unpacked of the file that the graphs read."""
    on_torch = names("default", backend="torch", cache_folder=str(tmp_path))
    assert names("default", backend="onnx") == on_torch
    assert names("default", backend="onnx", dtype="float32") == on_torch


def test_a_hub_s_forms_share_its_commit(tmp_path: Path) -> None:
    """Weights that were never downloaded are known by the commit they are of."""
    from tests.loading.test_hub import COMMIT, lay_out_cache

    folder = exported("bert")
    files = {it.name: it.read_bytes() for it in folder.iterdir() if it.is_file()}
    del files["rerank_adapters.json"]  # a graph of somebody else's making
    lay_out_cache(tmp_path, "org/x", files)
    options = {"cache_folder": str(tmp_path), "local_files_only": True, "backend": "onnx"}
    (content, commit) = names("org/x", **options)
    assert commit == f"org/x@{COMMIT}"
    fitted = Calibration(weights=("of the safetensors", commit))
    with Reranker("org/x", calibration=fitted, **options) as reranker:
        assert reranker.score("q", ["a"]).shape == (1,)
    with pytest.raises(ConfigError, match=f"weights that run, {content} of 'org/x'"):
        Reranker("org/x", calibration=Calibration(weights=("other",), model="y"), **options)


# --------------------------------------------------------------------------------------- adapters


async def test_adapters_are_calibrated_and_share_one_model() -> None:
    """Sync and awaited, in both frameworks; one network serves calibrated and plain fields."""
    sharing.close_all()
    texts = ["It is red.", "It is 70 m tall.", "Bread needs salt."]
    query = "how tall is it?"
    calibration = Calibration(temperature=3.0, bias=-2.0)
    with Reranker(activation="identity") as bare:
        logits = bare.score(query, texts)
    wanted = dict(zip(texts, calibration.scores(logits).tolist(), strict=True))
    documents = [Document(text) for text in texts]
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    given = {"calibration": calibration.to_dict()}
    sharing.close_all()  # no view but those of the adapters below
    with (
        CrossEncoderCompressor(**given) as compressor,
        CrossEncoderPostprocessor(**given, top_n=None) as post,
        CrossEncoderCompressor() as plain,
    ):
        for found in (
            compressor.compress_documents(documents, query),
            await compressor.acompress_documents(documents, query),
        ):
            assert {it.page_content: it.metadata["relevance_score"] for it in found} == wanted
        for ranked in (
            post.postprocess_nodes(nodes, QueryBundle(query)),
            await post.apostprocess_nodes(nodes, QueryBundle(query)),
        ):
            assert {it.node.text: it.score for it in ranked} == wanted
        assert plain.compress_documents(documents, query) != found
        assert len({id(view.model) for view in sharing._REGISTRY._views.values()}) == 1
        assert compressor.compress_documents(documents, query, score_threshold=0.99) == []
        again = CrossEncoderCompressor.model_validate_json(compressor.model_dump_json())
        assert again.calibration == calibration
        assert CrossEncoderPostprocessor.from_dict(post.to_dict()).calibration == calibration
    with pytest.raises(ConfigError, match=r"calibration\.temperature must be a number above 0"):
        CrossEncoderCompressor(calibration={"temperature": 0})
    sharing.close_all()
