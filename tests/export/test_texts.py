"""The text gate, and what an export says of texts: its own files must read them as the model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rerank_adapters import Reranker
from rerank_adapters.errors import ModelError
from rerank_adapters.export import export_onnx, files
from tests.checkpoints import PAIRS, build
from tests.replicas import edit_json, shouting

from .graphs import leftovers


def test_code_that_changes_texts_is_not_left_behind(tmp_path: Path) -> None:
    """Its graph would be right for every id, and each document be read as it is not meant."""
    folder = shouting("modular_bert", tmp_path / "model")
    with pytest.raises(ModelError, match=r"tokenizer writes .* otherwise .* by \d.*no file was"):
        export_onnx(folder, tmp_path / "out", trust_remote_code=True)
    assert leftovers(tmp_path) == ["model"]


def test_another_tokenizer_is_not_the_checkpoint_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting lost on the way: capitals would be read as capitals, which the model never saw."""
    honest = files.copy_configuration

    def lossy(source: Path, folder: Path) -> None:
        honest(source, folder)
        edit_json(folder / "tokenizer_config.json", do_lower_case=False)

    monkeypatch.setattr(files, "copy_configuration", lossy)
    with pytest.raises(ModelError, match=r"tokenizer writes .* otherwise"):
        export_onnx(build("bert"), tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_an_export_carries_special_tokens_and_prompt(tmp_path: Path) -> None:
    """What a text's "[SEP]" is and what stands before a query: as torch has it, unless said."""
    spelled = [("why is [SEP] the sky", "blue [SEP] light"), *PAIRS[:3]]
    said = {"special_tokens": "as_text", "prompt": "find: "}
    out = export_onnx(build("bert"), tmp_path / "out", **said)

    def scores(folder: Path, backend: str, **options: str) -> np.ndarray:
        with Reranker(str(folder), backend=backend, device="cpu", **options) as reranker:
            return reranker.score_pairs(spelled)

    wanted = scores(build("bert"), "torch", **said)
    np.testing.assert_allclose(scores(out, "onnx"), wanted, rtol=0, atol=1e-4)
    other = {"special_tokens": "as_tokens", "prompt": ""}
    wanted_other = scores(build("bert"), "torch", **other)
    np.testing.assert_allclose(scores(out, "onnx", **other), wanted_other, rtol=0, atol=1e-4)
    assert np.abs(wanted - wanted_other).min() > 1e-3
