"""The text gate: an exported folder's tokenizer must read texts as the checkpoint's own does."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch import Tensor

from ..backends.torch.loading import LoadedCrossEncoder
from ..backends.torch.parity import ragged
from ..checkpoints import Checkpoint
from ..errors import ModelError
from ..families import family_for
from ..parity.comparison import TOLERANCES
from ..parity.probes import SPELLINGS, UNEVEN
from ..tokenization import PairTokenizer
from ..tokens import TokenBatch
from .framing import Framing


def check_texts(oracle: CrossEncoder, framing: Framing, source: Path, folder: Path) -> None:
    """Raise ModelError where a text scores otherwise as *folder*'s own files write it.

    Torch scores both, so that what a graph's numbers cost is not counted; the same tokens score the
    same. From here on *oracle* reads by tokenizer.json of *source*, which is the authority.
    """
    written = Checkpoint.read(folder)
    family = family_for(written, activation="identity")
    tokenizer = PairTokenizer.from_checkpoint(
        written,
        prompt=family.prompt,
        template=family.template,
        position_limit=family.position_limit,
    )
    framed = None if framing.template is None else partial(framing.features, oracle)
    loaded = LoadedCrossEncoder(oracle, encode=framed)
    if (source / "tokenizer.json").is_file():
        loaded.read_with(PairTokenizer.from_folder(source).tokenizer_json)
    for pair in [*UNEVEN, *SPELLINGS]:
        features = loaded.preprocess([pair], written.default_prompt)
        moved = _moved(loaded, features, tokenizer.encode([pair]).batch)
        if moved > TOLERANCES["float32"]:
            raise ModelError(
                f"the exported folder's tokenizer writes {pair!r} otherwise than the checkpoint "
                f"does, whose own code changes texts: the logit moves by {moved:.1e}, and no file "
                'was kept; load it with backend="torch"'
            )


def _moved(loaded: LoadedCrossEncoder, features: dict[str, Tensor], batch: TokenBatch) -> float:
    """Return how far the logits of *batch* are from those of *features*, both of one pair."""
    own = ragged(features)
    same = np.array_equal(own.input_ids, batch.input_ids)
    if same and np.array_equal(own.type_ids, batch.type_ids):
        return 0.0
    arrays = {
        "input_ids": batch.input_ids,
        "attention_mask": np.ones_like(batch.input_ids),
        "token_type_ids": batch.type_ids,
    }
    other = {
        name: torch.from_numpy(arrays[name][None].astype(np.int64)) if name in arrays else value
        for name, value in features.items()
    }
    with torch.inference_mode():
        return float((loaded.forward(features) - loaded.forward(other)).abs().max())
