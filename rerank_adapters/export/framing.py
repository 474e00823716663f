"""How pairs of the checkpoint that is exported are framed, where its own files do not say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from sentence_transformers import CrossEncoder
from torch import Tensor

from ..backends.torch import convert_tokenizer, render_chat
from ..checkpoints import Checkpoint, TextTemplate
from ..config import RerankerConfig, SpecialTokens
from ..families import Frame, family_for
from ..families.templates import template_of
from ..loading.catalogue import frame_of
from ..tokenization import PairTokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Framing:
    """What arguments or the catalogue say, and the tokenizer that writes pairs so."""

    frame: Frame
    template: TextTemplate | None
    tokenizer: PairTokenizer | None
    prompt: str | None
    special_tokens: SpecialTokens | None = None

    @classmethod
    def of(cls, config: RerankerConfig, checkpoint: Checkpoint) -> Framing:
        """Return the framing that *config* asks for, or that its hub id is known for."""
        frame, prompt = frame_of(config, checkpoint), config.prompt
        trust, cache = config.trust_remote_code, config.cache_folder
        if checkpoint.causal and not checkpoint.modules:  # refused as in loading, and as early
            render = partial(render_chat, trust_remote_code=trust, cache_folder=cache)
            family_for(checkpoint, prompt=prompt, render=render, frame=frame)
        template = None
        if frame.template is not None:
            template = template_of(checkpoint, prompt, None, frame)
        if template is None and frame.answers is None:
            return cls(frame, None, None, prompt, config.special_tokens)
        tokenizer = PairTokenizer.from_checkpoint(
            checkpoint,
            template=template,
            special_tokens=config.special_tokens,
            position_limit=checkpoint.position_limit,
            convert=partial(convert_tokenizer, trust_remote_code=trust, cache_folder=cache),
        )
        prompt = frame.instruction if prompt is None else prompt
        return cls(frame, template, tokenizer, prompt, config.special_tokens)

    @property
    def answers(self) -> tuple[int, int | None] | None:
        """Token ids of the answers, where somebody gave them."""
        if self.frame.answers is None or self.tokenizer is None:
            return None
        return self.tokenizer.answer_tokens(self.frame.answers)

    def features(self, oracle: CrossEncoder, pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
        """Return what *oracle*'s forward takes of *pairs*."""
        if self.template is None or self.tokenizer is None:
            return dict(oracle.preprocess(pairs))
        batch = self.tokenizer.encode(pairs).batch
        arrays = batch.padded(self.tokenizer.pad_id, self.tokenizer.pad_side)
        names = ("input_ids", "attention_mask")
        return {name: torch.from_numpy(it) for name, it in zip(names, arrays, strict=False)}


PLAIN = Framing(Frame(), None, None, None)
"""A checkpoint whose own files say it all."""
