"""A pair's own frame, answers and label: scores are the card's computation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen3ForSequenceClassification,
)

from rerank_adapters import ConfigError, ModelError, Reranker, RerankerConfig
from rerank_adapters.checkpoints import Checkpoint, Manifest, TextTemplate
from rerank_adapters.export import export_onnx
from rerank_adapters.families import Frame
from rerank_adapters.loading.catalogue import CATALOGUE, KNOWN, frame_of
from rerank_adapters.tokenization import PairTokenizer
from tests.checkpoints import PAIRS, build
from tests.replicas import PLAIN_CHAT, copy_of, edit_json, save_decoder

SHORT = [pair for pair in PAIRS if len(pair[0] + pair[1]) < 300 and "<|" not in pair[1]][:10]
FRAME = "<|im_start|>system\n{instruction}<|im_end|>\nQ: {query}\nD: {document}\nanswer: "
Card = Callable[[str, str], float]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 whose chat template knows no query and no document."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    save_decoder(folder, chat=PLAIN_CHAT)
    return folder


def last_logits(folder: Path, text: str) -> torch.Tensor:
    """Transformers' own logits after *text*, special tokens as its tokenizer adds them."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0, -1]


def lead(folder: Path, text: str, yes: str, no: str | None = None) -> float:
    """logit(yes) - logit(no) at the last token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = last_logits(folder, text)
    value = logits[tokenizer.convert_tokens_to_ids(yes)]
    return float(value if no is None else value - logits[tokenizer.convert_tokens_to_ids(no)])


def filled(frame: str, query: str, document: str, instruction: str = "") -> str:
    """The card's text; none of the values holds a brace."""
    text = frame.replace("{instruction}", instruction).replace("{query}", query)
    return text.replace("{document}", document)


def close(scores: Any, expected: Any) -> None:
    """Law 1's tolerance: rounding of float32 sums in another order."""
    np.testing.assert_allclose(np.asarray(scores), np.asarray(expected), rtol=0, atol=1e-4)


def on_torch(folder: Path, **options: Any) -> Reranker:
    """Loaded for torch on the CPU."""
    return Reranker(str(folder), backend="torch", device="cpu", **options)


def test_a_frame_and_its_answers_score_as_the_text_does(language_model: Path) -> None:
    """The lead of one answer over the other after the frame; a call's prompt is written in."""
    options = {"template": FRAME, "answers": ("yes", "no"), "activation": "identity"}
    with on_torch(language_model, **options, prompt="judge") as reranker:
        expected = [lead(language_model, filled(FRAME, *it, "judge"), "yes", "no") for it in SHORT]
        close(reranker.score_pairs(SHORT), expected)
        query, document = SHORT[0]
        for prompt in ("another one", ""):
            (found,) = reranker.rerank(query, [document], prompt=prompt)
            text = filled(FRAME, query, document, prompt)
            close(found.score, lead(language_model, text, "yes", "no"))


def test_the_document_may_stand_first_and_one_answer_do(language_model: Path) -> None:
    """No order of texts is taken for granted, in a frame or in a chat template."""
    frame = "D: {document}\nQ: {query} ??"
    with on_torch(language_model, template=frame, answers=["yes"], activation="identity") as it:
        expected = [lead(language_model, filled(frame, *pair), "yes") for pair in SHORT]
        close(it.score_pairs(SHORT), expected)


def card_ids(folder: Path, frame: str, query: str, document: str, instruction: str) -> list[int]:
    """What a card that joins tokens at {|} feeds: each piece tokenised by itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        token
        for piece in frame.split("{|}")
        for token in tokenizer(
            filled(piece, query, document, instruction), add_special_tokens=False
        ).input_ids
    ]


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("BAAI/bge-reranker-v2-gemma", 1),
        ("mixedbread-ai/mxbai-rerank-base-v2", 1),
        ("Qwen/Qwen3-Reranker-0.6B", 1),
        ("zeroentropy/zerank-1", 5),
    ],
)
def test_cards_of_the_catalogue(language_model: Path, name: str, scale: int) -> None:
    """The frame, answers and instruction of the card: the logit, divided by 5 for zerank.

    mxbai's own code and FlagEmbedding tokenise the pieces of a pair apart, Qwen's and zerank's not.
    """
    frame = KNOWN[name].frame
    assert frame.template is not None
    words = tuple("yes" if word in ("Yes", "1") else "no" for word in frame.answers or ())
    options = {"template": frame.template, "answers": words, "prompt": frame.instruction}
    pairs = [(query.strip(), document.strip()) for query, document in SHORT]
    rows = [
        card_ids(language_model, frame.template, *pair, frame.instruction or "") for pair in pairs
    ]
    model = AutoModelForCausalLM.from_pretrained(language_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    answers = [tokenizer.convert_tokens_to_ids(word) for word in words]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows]
    expected = [float(it[answers[0]] - (it[answers[1]] if answers[1:] else 0)) for it in logits]
    with on_torch(language_model, **options, activation="identity") as reranker:
        close(reranker.score_pairs(pairs), expected)
    assert frame.scale == 1 / scale


def test_at_a_joint_tokens_do_not_cross(tmp_path: Path) -> None:
    """Texts " th" and "e" are " the" where they are joined as texts; a text's own {|} is text."""
    save_decoder(tmp_path)
    apart, whole = "{query}{|}{document}!", "{query}{document}!"
    ids = {
        frame: PairTokenizer.from_checkpoint(
            Checkpoint.read(tmp_path), template=TextTemplate.parse(frame, None)
        )
        .encode([(" th", "e"), ("{|}", "{|}")])
        .batch
        for frame in (apart, whole)
    }
    expected = [
        *card_ids(tmp_path, apart, " th", "e", ""),
        *AutoTokenizer.from_pretrained(tmp_path)("{|}").input_ids,
        *AutoTokenizer.from_pretrained(tmp_path)("{|}!").input_ids,
    ]
    assert ids[apart].input_ids.tolist() == expected
    assert ids[whole].lengths[0] < ids[apart].lengths[0]
    with pytest.raises(ConfigError, match=r"\{\|\} between \{query\} and \{document\}"):
        RerankerConfig(template="a{|}{query}{document}")


def test_an_entry_counts_by_id_and_architecture_together(language_model: Path) -> None:
    """Not by shape: a folder of one's own, another architecture and own files take no entry."""
    plain = Checkpoint.read(language_model)
    known = RerankerConfig(model="Qwen/Qwen3-Reranker-0.6B")
    assert frame_of(known, plain).answers == ("yes", "no")
    assert frame_of(RerankerConfig(model=str(language_model)), plain).template is None
    assert frame_of(RerankerConfig(model="BAAI/bge-reranker-v2-gemma"), plain).template is None
    assert frame_of(known, Checkpoint.read(build("qwen3"))).template is None
    names = [name for entry in CATALOGUE for name in entry.ids]
    assert len(names) == len(set(names)) == len(KNOWN)


def test_a_folder_that_does_not_say_names_what_it_resembles(language_model: Path) -> None:
    """The cure is the arguments, shown by the entry of the same architecture."""
    with pytest.raises(
        ModelError, match=r"template=.*answers=.*resembles Qwen/Qwen3-Reranker-0.6B"
    ):
        on_torch(language_model)
    with pytest.raises(ModelError, match=r"template=.*answers="):
        export_onnx(language_model, language_model.parent / "out")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"template": "{query}"}, "template must have"),
        ({"template": "{query}{query}{document}"}, "template must have"),
        ({"template": "{query}{document}{instruction}{instruction}"}, "template must have"),
        ({"answers": ()}, "answers must be one or two words"),
        ({"answers": ("a", "b", "c")}, "answers must be one or two words"),
        ({"label": True}, "label must be an index"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], match: str) -> None:
    """The rule, when the configuration is made."""
    with pytest.raises(ConfigError, match=match):
        RerankerConfig(**options)


def test_what_a_model_cannot_take_is_refused(language_model: Path) -> None:
    """Words of several tokens, a prompt without a place, answers for a head of labels."""
    frame = "{query}{document}"
    with pytest.raises(ConfigError, match="answers must be single tokens"):
        on_torch(language_model, template=frame, answers=["photosynthesis"])
    with pytest.raises(ConfigError, match="prompt must be None for a template without"):
        on_torch(language_model, template=frame, answers=["yes"], prompt="do it")
    with pytest.raises(ConfigError, match=r"prompt must be given for a template with \{instr"):
        on_torch(language_model, template=FRAME, answers=["yes"])
    with pytest.raises(ConfigError, match="answers must be None for a model with a head"):
        on_torch(build("bert"), answers=["yes"])


@pytest.mark.long
def test_an_export_carries_all_of_it(language_model: Path, tmp_path: Path) -> None:
    """Frame, answers, instruction and its place: the ONNX file needs no argument and no torch."""
    out = export_onnx(
        language_model, tmp_path / "out", template=FRAME, answers=("yes", "no"), prompt="judge"
    )
    stated = Manifest.read(out)
    assert stated is not None
    assert stated.template is not None
    with Reranker(str(out), backend="onnx", activation="identity") as reranker:
        expected = [lead(language_model, filled(FRAME, *it, "judge"), "yes", "no") for it in SHORT]
        close(reranker.score_pairs(SHORT), expected)
        (found,) = reranker.rerank(*SHORT[0][:1], [SHORT[0][1]], prompt="other")
        close(found.score, lead(language_model, filled(FRAME, *SHORT[0], "other"), "yes", "no"))
    with pytest.raises(ConfigError, match="answers must be None for an exported model"):
        Reranker(str(out), backend="onnx", answers=("no", "yes"))


def test_a_decoder_with_labels_takes_a_frame(tmp_path: Path) -> None:
    """Tomaarsen's conversions and llama-nemotron: one text, read by the head."""
    folder, frame = tmp_path / "model", "question:{query} \n \n passage:{document}"
    save_decoder(folder, Qwen3ForSequenceClassification, chat=None, labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = [
            float(model(**tokenizer(filled(frame, *pair), return_tensors="pt")).logits[0, 0])
            for pair in SHORT
        ]
    with on_torch(folder, template=frame, activation="identity") as reranker:
        close(reranker.score_pairs(SHORT), expected)


def three_labels(folder: Path) -> Path:
    """An NLI model: three labels over a pair."""

    def wider(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        head = {"classifier.weight": torch.randn(3, 64), "classifier.bias": torch.randn(3)}
        return weights | head

    torch.manual_seed(5)
    names = {"0": "contradiction", "1": "entailment", "2": "neutral"}
    return copy_of("bert", folder, weights=wider, id2label=names, label2id=None)


def test_one_of_three_labels_is_the_score(tmp_path: Path) -> None:
    """Softmax at the label, by index and by name; without one it is refused with the cure."""
    folder = three_labels(tmp_path / "nli")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    features = AutoTokenizer.from_pretrained(folder)(
        [list(pair) for pair in SHORT], padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        shares = model(**features).logits.softmax(1).numpy()
    for label, column in (("entailment", 1), (2, 2), ("Neutral", 2)):
        with on_torch(folder, label=label) as reranker:
            close(reranker.score_pairs(SHORT), shares[:, column])
    with pytest.raises(ModelError, match=r"1 or 2 labels: got 3 \(contradiction.*pass label="):
        on_torch(folder)
    with pytest.raises(ConfigError, match="label must be an index below 3 or one of"):
        on_torch(folder, label="relevant")


@pytest.mark.parametrize(
    "names", [("relevant", "irrelevant"), ("entailment", "not_entailment"), ("true", "LABEL_1")]
)
def test_names_that_contradict_the_second_label_are_refused(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    """label= says which; softmax of the two adds up to one."""
    folder = copy_of("bert_two_labels", tmp_path / "model")
    edit_json(folder / "config.json", id2label=dict(zip("01", names, strict=True)), label2id=None)
    with pytest.raises(ModelError, match=f"called '{names[0]}' and '{names[1]}': pass label=0"):
        on_torch(folder)
    with on_torch(folder, label=0) as first, on_torch(folder, label=names[1]) as second:
        close(first.score_pairs(SHORT) + second.score_pairs(SHORT), np.ones(len(SHORT)))


@pytest.mark.parametrize(
    ("architecture", "config", "helps"),
    [
        ("LayerWiseMiniCPMForCausalLM", {}, "layerwise.*bge-reranker-v2-m3"),
        ("CostWiseGemmaForCausalLM", {}, "layerwise.*bge-reranker-v2-gemma"),
        ("JinaForRanking", {}, "listwise.*jina-reranker-v2"),
        ("T5ForConditionalGeneration", {}, "generated token.*bge-reranker-v2-m3"),
        ("Qwen3VLForConditionalGeneration", {}, "images.*Qwen3-Reranker"),
        ("OddForSequenceClassification", {"vision_config": {}}, "images.*text"),
    ],
)
def test_kinds_that_are_not_scored_say_what_would_help(
    tmp_path: Path, architecture: str, config: dict[str, Any], helps: str
) -> None:
    """The same in loading and in export, trusted or not."""
    folder = copy_of("bert", tmp_path / "model", architectures=[architecture], **config)
    for trust in (False, True):
        with pytest.raises(ModelError, match=f"{architecture}.*cannot be scored.*{helps}"):
            on_torch(folder, trust_remote_code=trust)
    with pytest.raises(ModelError, match=f"cannot be scored.*{helps}"):
        export_onnx(folder, tmp_path / "out")


def test_a_frame_is_parsed_and_never_formatted() -> None:
    """Braces of any other kind are text; the instruction may stand in any part."""
    from rerank_adapters.checkpoints import TextTemplate

    text = '{"a": {query.__class__}} {query} {0} {instruction}{document} }{'
    template = TextTemplate.parse(text, "do")
    assert template.text("{document}", "{query}") == (
        '{"a": {query.__class__}} {document} {0} do{query} }{'
    )
    other = template.with_prompt("")
    assert other is not None
    assert other.middle == " {0} "
    assert Frame().template is None
