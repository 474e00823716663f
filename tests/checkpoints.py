"""Tiny checkpoints of every supported architecture, made offline, and the oracle for their scores.

`build(kind)` trains a real tokenizer on TRAINING_TEXT, draws seeded weights, scales the last layer
so that the logits over PAIRS have standard deviation 1.5, and saves the folder as transformers or
sentence-transformers would. Folders are cached in the temporary directory under a hash of this file
and the versions that shape them; each is made by one process, and appears by one atomic rename.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaTokenizer,
)

from .kinds import KINDS

Pairs = Sequence[tuple[str, str]]

TRAINING_TEXT = """\
The lighthouse keeper climbed the narrow stairs every evening to light the lamp.
Sourdough bread needs a lively starter, patience, and a very hot oven.
A transistor switches or amplifies electronic signals; billions of them fit on one chip.
Photosynthesis turns carbon dioxide and water into sugar, and releases oxygen.
How do I reset the password of my account if I no longer have the phone?
Open the settings, choose security, and select "forgot password" to receive a new code.
The treaty was signed in 1648 and ended thirty years of war in central Europe.
Vaccines train the immune system to recognise a pathogen before the first infection.
Rain fell on the tin roof while the children counted the seconds after each flash of lightning.
What is the capital of Mongolia, and how cold does it get there in January?
Ulaanbaatar is the capital of Mongolia; winter nights often fall below minus thirty degrees.
The committee approved the budget for the new library by a vote of seven to four.
To compile the program, install a recent compiler and run make in the project's root folder.
A binary search halves the interval at every step, so it needs about log2(n) comparisons.
The violin's highest string is tuned to E, a fifth above the A string.
Interest compounds daily, so the balance grows faster than a simple yearly rate suggests.
Whales are mammals: they breathe air, nurse their young, and have hair at birth.
The recipe calls for two eggs, 250 grams of flour, a pinch of salt and one lemon.
Which trains run from Lisbon to Porto on Sunday morning, and how long do they take?
Trains from Lisbon to Porto leave every hour; the fastest takes two hours and fifty minutes.
An earthquake's magnitude is measured on a logarithmic scale.
The defendant appealed, arguing that the evidence had been collected without a warrant.
Black holes evaporate very slowly by emitting Hawking radiation.
She planted tomatoes, basil and marigolds along the southern wall of the garden.
Insulin lowers the concentration of glucose in the blood; glucagon raises it.
The marathon route crosses five bridges and finishes in front of the old town hall.
Does the warranty cover water damage, or only faults in manufacturing?
The warranty covers faults in material and workmanship for two years, not water damage.
Glaciers carve valleys with a broad U shape, rivers carve valleys with a narrow V shape.
A haiku has seventeen syllables, and often names a season.
The database locks a row until the transaction commits or rolls back.
Coffee beans are roasted between 180 and 240 degrees Celsius until they crack.
Why is the sky blue during the day and red when the sun goes down?
Short wavelengths scatter more strongly in air, so blue light reaches us from every direction.
The orchestra rehearsed the slow movement three times before the conductor smiled.
Public-key encryption lets two strangers agree on a secret over an open channel.
Antibiotics act against bacteria and have no effect on viruses such as influenza.
The bakery on the corner opens at six and sells out of croissants before nine.
El faro ilumina la costa durante la noche y guía a los barcos hasta el puerto.
Der schnelle braune Fuchs springt über den faulen Hund, während es draußen regnet.
La bibliothèque est fermée le dimanche, mais le musée reste ouvert jusqu'à dix-huit heures.
Пассажирский поезд прибывает на второй путь, будьте осторожны у края платформы.
Η βιβλιοθήκη ανοίγει στις εννέα το πρωί και κλείνει αργά το βράδυ.
東京は日本の首都であり、世界最大の都市の一つです。
光合作用把二氧化碳和水变成糖,并释放氧气。
القاهرة هي عاصمة مصر وأكبر مدينة في العالم العربي.
서울은 대한민국의 수도이며 한강이 도시를 가로지른다.
यह पुस्तकालय रविवार को बंद रहता है।
Judge whether the Document meets the requirements based on the Query and the Instruct provided.
Note that the answer can only be "yes" or "no". <Instruct>: <Query>: <Document>:
system user assistant
Given a web search query, retrieve relevant passages that answer the query
yes, the answer is yes
no, the answer is no
yes it can
no it can not
yes and no
no or yes
"""

LONG_DOCUMENT = " ".join(TRAINING_TEXT.splitlines()[:38])
LONG_QUERY = " ".join(TRAINING_TEXT.splitlines()[8:22])

_LINES = TRAINING_TEXT.splitlines()
_SKY = "why is the sky blue"

PAIRS: list[tuple[str, str]] = [
    (_SKY, _LINES[33]),
    (_SKY, _LINES[2]),
    (_SKY, _LINES[33]),  # an identical pair
    (_SKY, ""),
    (_SKY, " \n\t "),
    (_SKY, "blue"),
    (_SKY, "."),
    (_SKY, LONG_DOCUMENT),
    (_SKY, LONG_DOCUMENT[::-1]),
    (LONG_QUERY, _LINES[20]),
    (LONG_QUERY, LONG_DOCUMENT),
    (LONG_QUERY, ""),
    ("capital of Mongolia", _LINES[10]),
    ("capital of Mongolia", _LINES[9] + " " + _LINES[10]),
    ("capital of Mongolia", " ".join(_LINES[8:13])),
    ("capital of Mongolia", "ULAANBAATAR!!! (Улаанбаатар)"),
    ("train from Lisbon to Porto", _LINES[19]),
    ("train from Lisbon to Porto", _LINES[18]),
    ("train from Lisbon to Porto", " ".join(_LINES[18:20] * 3)),
    ("train from Lisbon to Porto", "porto lisbon train"),
    ("how long is the warranty?", _LINES[27]),
    ("how long is the warranty?", _LINES[26] + "\n\n" + _LINES[27]),
    (
        "how long is the warranty?",
        "Twenty-four months.\r\nSee the certificate no. A-1138/7 (p. 12).",
    ),
    ("日本の首都はどこですか", _LINES[43]),
    ("日本の首都はどこですか", "東京" * 150),
    ("光合作用", _LINES[44]),
    ("photosynthesis", _LINES[44]),
    ("ما هي عاصمة مصر؟", _LINES[45]),
    ("ما هي عاصمة مصر؟", "Cairo is the capital of Egypt."),
    ("서울", _LINES[46]),
    ("bibliothèque fermée", _LINES[40]),
    ("naïve café", "nai\u0308ve cafe\u0301 — the same words, decomposed"),
    ("mood 🙂", "🙂🙃 👩‍👩‍👧‍👦 🇯🇵 feeling fine \u200b\u200b today"),
    ("password reset", _LINES[5]),
    ("password reset", _LINES[4] + " " + " ".join(_LINES[12:16])),
    ("x", "y"),
    (
        "log2(n)",
        "def search(a, x):\n    lo, hi = 0, len(a)\n    while lo < hi:\n        m = (lo + hi) // 2",
    ),
    ("bread", " ".join([_LINES[1], _LINES[17], _LINES[31], _LINES[37]])),
    ("bread", "bread " * 400),
    ("bread", "[SEP] </s> <|im_end|> [CLS] <s> [MASK] are words here, or not"),
    ("Hawking radiation", " ".join(_LINES[20:33])),
    ("supercalifragilisticexpialidocious" * 4, "antidisestablishmentarianism" * 30),
]

CHAT_TEMPLATE = """\
{%- set system = messages | selectattr("role", "eq", "system") | map(attribute="content") | first
    | default("Given a web search query, retrieve relevant passages that answer the query") -%}
{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}
{%- set text = messages | selectattr("role", "eq", "document") | map(attribute="content")
    | first -%}
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ system }}
<Query>: {{ query }}
<Document>: {{ text }}<|im_end|>
<|im_start|>assistant
<think>

</think>


"""

IDENTITY = "torch.nn.modules.linear.Identity"
TARGET_STD = 1.5
"""Of the logits over PAIRS: wrong scores show, few of them hide in the flat ends of a sigmoid."""

# ---------------------------------------------------------------------------------- tokenizers


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> dict[str, object]:
    """The trained model part of *tokenizer*, as its JSON."""
    tokenizer.train_from_iterator(_LINES, trainer)
    parsed: dict[str, dict[str, object]] = json.loads(tokenizer.to_str())
    return parsed["model"]


def _wordpiece_vocab(special: list[str], unk: str) -> dict[str, int]:
    tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = sorted(set(tokenizer.normalizer.normalize_str(TRAINING_TEXT)) - set(" \n"))
    # The trainer numbers "##a" in a hash map's order, and ties in merging follow the numbers:
    # naming them first makes the vocabulary the same in every run.
    first = [*special, *letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=first, show_progress=False)
    vocab = _train(tokenizer, trainer)["vocab"]
    assert isinstance(vocab, dict)
    return vocab


def _byte_level_bpe(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model = _train(tokenizer, trainer)
    vocab, merges = model["vocab"], model["merges"]
    assert isinstance(vocab, dict)
    assert isinstance(merges, list)
    return vocab, [(left, right) for left, right in merges]


def _unigram_vocab(special: list[str], unk: str) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=8000, special_tokens=special, unk_token=unk, show_progress=False
    )
    vocab = _train(tokenizer, trainer)["vocab"]
    assert isinstance(vocab, list)
    # The trainer adds floats, and steps down through unseen letters, in an order that changes from
    # run to run. No pruning (a large vocab_size), rounded scores, one score for unseen letters and
    # ties by spelling make the vocabulary the same in every run.
    lowest = min(score for _, score in vocab) + 0.02
    pieces = [(piece, round(max(score, lowest), 3)) for piece, score in vocab[len(special) :]]
    return [*((piece, 0.0) for piece in special), *sorted(pieces, key=lambda it: (-it[1], it[0]))]


_BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _bert_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab=_wordpiece_vocab(_BERT_SPECIAL, "[UNK]"))


def _mpnet_tokenizer() -> MPNetTokenizer:
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    return MPNetTokenizer(vocab=_wordpiece_vocab(special, "[UNK]"))


def _roberta_tokenizer() -> RobertaTokenizer:
    vocab, merges = _byte_level_bpe(_ROBERTA_SPECIAL)
    return RobertaTokenizer(vocab=vocab, merges=merges)


def _xlm_roberta_tokenizer() -> XLMRobertaTokenizer:
    return XLMRobertaTokenizer(vocab=_unigram_vocab(_ROBERTA_SPECIAL, "<unk>"))


def _deberta_tokenizer() -> DebertaV2Tokenizer:
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    return DebertaV2Tokenizer(vocab=_unigram_vocab(special, "[UNK]"), unk_id=3)


def _modernbert_tokenizer() -> PreTrainedTokenizerFast:
    vocab, merges = _byte_level_bpe(_BERT_SPECIAL)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def _qwen_tokenizer() -> Qwen2Tokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab, merges = _byte_level_bpe(special)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, additional_special_tokens=special[1:])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer


# ---------------------------------------------------------------------------------- checkpoints


def _common(tokenizer: PreTrainedTokenizerFast, labels: int = 1) -> dict[str, int]:
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return {"vocab_size": len(tokenizer), "pad_token_id": pad, "num_labels": labels}


def _bert_like(
    tokenizer: PreTrainedTokenizerFast, *, positions: int, labels: int = 1
) -> dict[str, object]:
    return {
        **_common(tokenizer, labels),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": positions,
        # Far above the usual 0.02: positions, token types and padding must move the score visibly.
        "initializer_range": 0.2,
    }


def _seeded(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(20260821)
        return model_class(config).eval()


def _save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    model_max_length: int | None = None,
    identity: bool = False,
) -> None:
    """Saves as transformers does; without `model_max_length` no limit is stored."""
    if model_max_length is not None:
        tokenizer.model_max_length = model_max_length
    if identity:
        model.config.sentence_transformers = {"activation_fn": IDENTITY, "version": "4.1.0"}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _scale(folder: Path, last: Callable[[CrossEncoder], torch.nn.Linear]) -> CrossEncoder:
    """The checkpoint loaded, its last layer scaled to the wanted spread of logits around 0."""
    encoder = _load(folder)
    logits = _logits(encoder, PAIRS)
    layer = last(encoder)
    with torch.no_grad():
        factor = TARGET_STD / _spread(logits).std()
        layer.weight *= factor
        layer.bias.copy_(torch.from_numpy((layer.bias.numpy() - logits.mean(axis=0)) * factor))
    return encoder


def _spread(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """One number per pair: the logit, or the second label's lead over the first."""
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def _classifier(encoder: CrossEncoder) -> torch.nn.Linear:
    model = encoder.model
    head = getattr(model, "classifier", None) or getattr(model, "score", None)
    layer = getattr(head, "out_proj", head)
    assert isinstance(layer, torch.nn.Linear)
    return layer


def _classification(
    folder: Path,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    model_max_length: int | None = None,
    identity: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    model = _seeded(model_class, config)
    _save(folder, model, tokenizer, model_max_length=model_max_length, identity=identity)
    scaled = _scale(folder, _classifier).model
    assert scaled is not None
    _save(folder, scaled.to(dtype), tokenizer, model_max_length=model_max_length, identity=identity)


def _bert(folder: Path) -> None:
    tokenizer = _bert_tokenizer()
    config = BertConfig(**_bert_like(tokenizer, positions=256))
    _classification(
        folder,
        BertForSequenceClassification,
        config,
        tokenizer,
        model_max_length=256,
        identity=True,
    )


def _bert_two_labels(folder: Path) -> None:
    tokenizer = _bert_tokenizer()
    config = BertConfig(**_bert_like(tokenizer, positions=192, labels=2))
    _classification(folder, BertForSequenceClassification, config, tokenizer, model_max_length=192)


def _bert_128(folder: Path) -> None:
    """The limit stands in the config alone: the tokenizer stores none."""
    tokenizer = _bert_tokenizer()
    config = BertConfig(**_bert_like(tokenizer, positions=128))
    _classification(folder, BertForSequenceClassification, config, tokenizer)


def _bert_half(folder: Path) -> None:
    tokenizer = _bert_tokenizer()
    config = BertConfig(**_bert_like(tokenizer, positions=192))
    _classification(
        folder,
        BertForSequenceClassification,
        config,
        tokenizer,
        model_max_length=192,
        identity=True,
        dtype=torch.float16,
    )


def _electra(folder: Path) -> None:
    """Its tokenizer.json has truncation and padding baked in, as many files on the hub have."""
    tokenizer = _bert_tokenizer()
    config = ElectraConfig(**_bert_like(tokenizer, positions=192), embedding_size=48)
    _classification(folder, ElectraForSequenceClassification, config, tokenizer, identity=True)
    baked = Tokenizer.from_file(str(folder / "tokenizer.json"))
    baked.enable_truncation(40)
    baked.enable_padding(length=40, pad_id=0, pad_token="[PAD]")
    baked.save(str(folder / "tokenizer.json"))


def _distilbert(folder: Path) -> None:
    tokenizer = _bert_tokenizer()
    config = DistilBertConfig(
        **_common(tokenizer),
        dim=64,
        hidden_dim=128,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=192,
        initializer_range=0.2,
    )
    _classification(
        folder, DistilBertForSequenceClassification, config, tokenizer, model_max_length=192
    )


def _roberta_like(tokenizer: PreTrainedTokenizerFast, *, positions: int) -> dict[str, object]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # Positions start at pad_token_id + 1 = 2, so two of them are never used.
    return {**_bert_like(tokenizer, positions=positions + 2), **ids, "type_vocab_size": 1}


def _roberta(folder: Path) -> None:
    tokenizer = _roberta_tokenizer()
    config = RobertaConfig(**_roberta_like(tokenizer, positions=192))
    _classification(
        folder, RobertaForSequenceClassification, config, tokenizer, model_max_length=192
    )


def _xlm_roberta(folder: Path) -> None:
    tokenizer = _xlm_roberta_tokenizer()
    config = XLMRobertaConfig(**_roberta_like(tokenizer, positions=256))
    _classification(
        folder,
        XLMRobertaForSequenceClassification,
        config,
        tokenizer,
        model_max_length=256,
        identity=True,
    )


def _mpnet(folder: Path) -> None:
    tokenizer = _mpnet_tokenizer()
    config = MPNetConfig(**_roberta_like(tokenizer, positions=192))
    _classification(folder, MPNetForSequenceClassification, config, tokenizer, model_max_length=192)


def _modernbert(folder: Path) -> None:
    """Layer 0 looks everywhere, layers 1 and 2 eight tokens to each side."""
    tokenizer = _modernbert_tokenizer()
    config = ModernBertConfig(
        **{**_bert_like(tokenizer, positions=512), "num_hidden_layers": 3},
        global_attn_every_n_layers=3,
        local_attention=16,
        initializer_cutoff_factor=2.0,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        classifier_pooling="mean",
    )
    _classification(
        folder,
        ModernBertForSequenceClassification,
        config,
        tokenizer,
        model_max_length=320,
        identity=True,
    )


def _deberta_v2(folder: Path) -> None:
    """DeBERTa-v3's settings: bucketed relative positions both ways, no absolute ones, no types."""
    tokenizer = _deberta_tokenizer()
    config = DebertaV2Config(
        **_bert_like(tokenizer, positions=192),
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        pooler_hidden_size=64,
    )
    _classification(
        folder, DebertaV2ForSequenceClassification, config, tokenizer, model_max_length=192
    )


def _qwen3(folder: Path) -> None:
    """A causal yes/no reranker as sentence-transformers saves it: modules.json, 1_LogitScore."""
    tokenizer = _qwen_tokenizer()
    tokenizer.model_max_length = 224
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    with tempfile.TemporaryDirectory() as plain:
        _seeded(Qwen3ForCausalLM, config).save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        encoder = CrossEncoder(
            modules=[
                Transformer(plain, transformer_task="text-generation"),
                LogitScore(true_token_id=yes, false_token_id=no),
            ],
            device="cpu",
            local_files_only=True,
            # Not the template's own default: who forgets the stored prompt scores something else.
            prompts={"passages": "Given a question, retrieve passages that answer it"},
            default_prompt_name="passages",
        )
        _scale_yes_no(encoder, yes, no)
        encoder.save_pretrained(str(folder), create_model_card=False)


def _scale_yes_no(encoder: CrossEncoder, yes: int, no: int) -> None:
    """Scales the head's two rows that the score reads; it has no bias, so the mean scales along."""
    logits = _logits(encoder, PAIRS)
    model = encoder.model
    assert model is not None
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[[yes, no]] *= float(TARGET_STD / logits.std())


def _modular_bert(folder: Path) -> None:
    """Transformer, CLS pooling, Dense, LayerNorm, Dense to "scores": the shape of ettin."""
    tokenizer = _bert_tokenizer()
    tokenizer.model_max_length = 192
    config = BertConfig(**_bert_like(tokenizer, positions=192))
    with tempfile.TemporaryDirectory() as plain, torch.random.fork_rng():
        _seeded(BertModel, config).save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        torch.manual_seed(20260822)
        last = Dense(64, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
        modules = [
            Transformer(plain, transformer_task="feature-extraction"),
            Pooling(64, pooling_mode="cls"),
            Dense(64, 64, bias=False, activation_function=torch.nn.GELU()),
            LayerNorm(64),
            last,
        ]
        encoder = CrossEncoder(modules=modules, device="cpu", local_files_only=True)
        logits = _logits(encoder, PAIRS)
        with torch.no_grad():
            factor = float(TARGET_STD / logits.std())
            last.linear.weight *= factor
            last.linear.bias.copy_((last.linear.bias - float(logits.mean())) * factor)
        encoder.save_pretrained(str(folder), create_model_card=False)


_BUILDERS: dict[str, Callable[[Path], None]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm_roberta": _xlm_roberta,
    "electra": _electra,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
    "deberta_v2": _deberta_v2,
    "mpnet": _mpnet,
    "bert_two_labels": _bert_two_labels,
    "bert_128": _bert_128,
    "qwen3": _qwen3,
    "modular_bert": _modular_bert,
    "bert_half": _bert_half,
}
assert tuple(_BUILDERS) == KINDS


@functools.cache
def cache_folder() -> Path:
    """Where checkpoints and their exports are kept: one folder per version of this file."""
    parts = [Path(__file__).read_bytes()]
    parts += [
        version(name).encode()
        for name in ("torch", "transformers", "tokenizers", "sentence-transformers")
    ]
    name = f"rerank-adapters-checkpoints-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The cached folder *name*, made by `make(folder)` the first time.

    Of several processes and threads one makes it while the others wait; where that one fails, the
    next of them tries.
    """
    final = cache_folder() / name
    if not final.is_dir():
        with FileLock(cache_folder() / f".{name}.lock"):
            if not final.is_dir():
                _make(final, make)
    return final


def _make(final: Path, make: Callable[[Path], None]) -> None:
    """A folder that appears whole, by one rename, or not at all."""
    draft = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        make(draft)
        draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@functools.cache
def build(kind: str) -> Path:
    """The folder of the tiny checkpoint *kind*, one of KINDS. Treat it as read-only."""
    return made_once(kind, _BUILDERS[kind])


# --------------------------------------------------------------------------------------- oracle

Activation = Literal["default", "sigmoid", "identity", "softmax"]


def _load(folder: Path) -> CrossEncoder:
    return CrossEncoder(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
    )


@functools.cache
def encoder_for(folder: Path) -> CrossEncoder:
    """sentence-transformers' own model of *folder*: float32, CPU."""
    return _load(folder)


def _logits(encoder: CrossEncoder, pairs: Pairs) -> NDArray[np.float32]:
    scores = encoder.predict(
        list(pairs),
        batch_size=8,
        show_progress_bar=False,
        activation_fn=torch.nn.Identity(),
        convert_to_numpy=True,
    )
    return np.asarray(scores, np.float32).reshape(len(pairs), -1)


def oracle(
    folder: Path,
    pairs: Pairs,
    *,
    max_length: int | None = None,
    truncation: Literal["longest_first", "only_second"] = "longest_first",
    prompt: str | None = None,
    activation: Activation = "default",
) -> NDArray[np.float32]:
    """float32 scores of shape (pairs,) by `CrossEncoder.predict`, the reference of law 1.

    Two labels: softmax [:, 1], or for "identity" the second logit's lead over the first.
    """
    encoder = encoder_for(folder)
    two = encoder.num_labels == 2
    functions = {"sigmoid": torch.nn.Sigmoid(), "identity": torch.nn.Identity()}
    scores = np.asarray(
        encoder.predict(
            list(pairs),
            prompt=prompt,
            batch_size=8,
            show_progress_bar=False,
            activation_fn=torch.nn.Identity() if two else functions.get(activation),
            apply_softmax=two and activation != "identity",
            convert_to_numpy=True,
            processing_kwargs={
                "text": {"truncation": truncation}
                | ({} if max_length is None else {"max_length": max_length})
            },
        ),
        np.float32,
    )
    if not two:
        return scores
    return _spread(scores) if activation == "identity" else scores[:, 1]
