"""Where tokenizer_config.json overrules tokenizer.json: as transformers 4 had it, class by class.

tokenizer.json says how a checkpoint was trained to read. transformers 4 loaded it and then let a
few classes change one step of it by their arguments; transformers 5 builds most tokenizers anew
from their vocabulary, and loses what its classes do not know (a normaliser of DeBERTa, a prefix of
XLM-R). So the file decides, and these classes alone overrule it.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from ..checkpoints import Checkpoint
from ..errors import ModelError

_LOWER = {"do_lower_case": ("lowercase", True), "strip_accents": ("strip_accents", None)}
_ALL = {**_LOWER, "tokenize_chinese_chars": ("handle_chinese_chars", True)}
_OF_BERT = (
    *("bert", "convbert", "distilbert", "electra", "funnel", "layoutlm", "lxmert", "megatronbert"),
    *("mobilebert", "squeezebert"),
)
_NORMALIZER = {
    **dict.fromkeys(_OF_BERT, _ALL),
    **dict.fromkeys(("mpnet", "roformer", "splinter"), _LOWER),
}
"""Class → its argument → the field of the normaliser that it sets, and its default."""

_PREFIXED = {
    *("bart", "blenderbot", "deberta", "gpt2", "led", "longformer", "mvp", "roberta"),
    *("robertaprelayernorm", "data2vectext"),
}
"""Classes whose `add_prefix_space` (default false) sets that of a ByteLevel pre-tokeniser."""

_WRITTEN = {
    **dict.fromkeys(_NORMALIZER, ("normalizer", "pre_tokenizer", "post_processor")),
    **dict.fromkeys(_PREFIXED, ("pre_tokenizer", "post_processor")),
}
"""Class → the steps that it writes into every tokenizer.json: one without them is damaged."""

_NAMED = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
    "mask_token",
)


def class_of(checkpoint: Checkpoint) -> str:
    """Return the tokenizer's class in lower case, "Tokenizer" and "Fast" dropped.

    tokenizer_config.json names it, else config.json, else it is that of the model's type.
    """
    stated = checkpoint.tokenizer.get("tokenizer_class") or checkpoint.config.get("tokenizer_class")
    name = str(stated or checkpoint.config.get("model_type") or "")
    plain = name.replace("-", "").replace("_", "").lower()
    return plain.removesuffix("fast").removesuffix("tokenizer")


def overruled(tokenizer: Tokenizer, checkpoint: Checkpoint) -> Tokenizer:
    """Return *tokenizer*, tokenizer.json as it is, under the arguments that its class takes.

    ModelError where a step is missing that its class always writes: transformers would put its own
    in, and without one the text is one word, or nothing parts query and document.
    """
    kind, settings = class_of(checkpoint), checkpoint.tokenizer
    missing = [step for step in _WRITTEN.get(kind, ()) if getattr(tokenizer, step) is None]
    if missing:
        raise ModelError(
            f"{checkpoint.folder / 'tokenizer.json'} has no {missing[0]}, which a {kind} tokenizer "
            "always has: the file is damaged; fetch it again, or let transformers save it anew"
        )
    arguments, normalizer = _NORMALIZER.get(kind), tokenizer.normalizer
    # As in transformers 4: a Sequence of normalisers is left alone.
    if arguments and isinstance(normalizer, normalizers.BertNormalizer):
        for name, (field, usual) in arguments.items():
            setattr(normalizer, field, settings.get(name, usual))
        tokenizer.normalizer = normalizer
    splitter = tokenizer.pre_tokenizer
    if kind in _PREFIXED and isinstance(splitter, pre_tokenizers.ByteLevel):
        splitter.add_prefix_space = bool(settings.get("add_prefix_space", False))
        tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens(_unlisted(tokenizer, settings))
    return tokenizer


def _unlisted(tokenizer: Tokenizer, settings: dict[str, Any]) -> list[AddedToken]:
    """Return the special tokens that are named and in the vocabulary, but not listed as such."""
    listed = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    stated = [settings.get(name) for name in _NAMED]
    names = [token.get("content") if isinstance(token, dict) else token for token in stated]
    return [
        AddedToken(name, special=True, normalized=False)
        for name in dict.fromkeys(names)
        if isinstance(name, str) and name not in listed and tokenizer.token_to_id(name) is not None
    ]
