"""Code in another repository: fetched as the checkpoint is, from a hub on loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rerank_adapters import ModelError, Reranker
from tests.checkpoints import PAIRS, build, encoder_for, oracle
from tests.exported import exported
from tests.loading.conftest import Hub
from tests.loading.test_hub import lay_out_cache
from tests.replicas import copy_of, edit_json

SOME = PAIRS[:6]
CODE = {
    "configuration.py": b"from transformers import BertConfig\n"
    b"class NewConfig(BertConfig):\n    model_type = 'new'\n",
    "modeling.py": b"from transformers import BertForSequenceClassification\n"
    b"from .configuration import NewConfig\n"
    b"class NewForSequenceClassification(BertForSequenceClassification):\n"
    b"    config_class = NewConfig\n",
}
"""A class of its own beside the weights, as gte-multilingual's lies in another repository."""


def gte(folder: Path) -> Path:
    """The tiny BERT as gte-multilingual is stored: its classes are in org/new-impl."""
    use = {
        "AutoConfig": "org/new-impl--configuration.NewConfig",
        "AutoModelForSequenceClassification": (
            "org/new-impl--modeling.NewForSequenceClassification"
        ),
    }
    names = ["NewForSequenceClassification"]
    return copy_of("bert", folder, auto_map=use, model_type="new", architectures=names)


def scored(folder: Path, **options: Any) -> NDArray[np.float32]:
    """Scores of SOME, by code that was read."""
    options = {"backend": "torch", "device": "cpu", "trust_remote_code": True, **options}
    with Reranker(str(folder), **options) as reranker:
        return reranker.score_pairs(SOME)


def test_code_of_another_repository_is_fetched_at_first_use(hub: Hub, tmp_path: Path) -> None:
    """Into the cache asked for, once; then without a hub."""
    folder, cache = gte(tmp_path / "model"), str(tmp_path / "cache")
    hub.repositories["org/new-impl"] = CODE
    first = scored(folder, cache_folder=cache)
    np.testing.assert_allclose(first, oracle(build("bert"), SOME), rtol=0, atol=1e-4)
    assert any(path.endswith("/modeling.py") for path in hub.asked)
    hub.asked.clear()
    shutil.rmtree(tmp_path / "modules")  # what was run is taken out of the cache again
    again = scored(folder, cache_folder=cache, local_files_only=True)
    assert (again.tolist(), hub.asked) == (first.tolist(), [])


TOKENIZER = {
    "tokenization.py": b"from transformers import BertTokenizer\n"
    b"class Shouting(BertTokenizer):\n"
    b"    def __init__(self, *args, **options):\n"
    b"        super().__init__(*args, **options)\n"
    b"        from tokenizers import normalizers\n"
    b"        loud = normalizers.Replace('sky', 'bread')\n"
    b"        own = self._tokenizer.normalizer\n"
    b"        self._tokenizer.normalizer = normalizers.Sequence([loud, own])\n",
}
"""A tokenizer of its own: what it is converted to reads another word."""


def with_tokenizer_elsewhere(folder: Path) -> Path:
    """The tiny BERT without tokenizer.json, whose tokenizer's class is in org/words."""
    copy_of("bert", folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(vocabulary, key=lambda word: int(vocabulary[word]))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    (folder / "tokenizer.json").unlink()
    use = {"AutoTokenizer": ["org/words--tokenization.Shouting", None]}
    edit_json(folder / "tokenizer_config.json", auto_map=use, tokenizer_class="Shouting")
    return folder


def test_a_tokenizer_s_code_goes_by_the_same_rules(hub: Hub, tmp_path: Path) -> None:
    """Trusted it is fetched into the cache asked for, then read from there alone; else refused."""
    folder, cache = with_tokenizer_elsewhere(tmp_path / "model"), str(tmp_path / "cache")
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        scored(folder, cache_folder=cache, trust_remote_code=False)
    with pytest.raises(ModelError, match=r"code from another repository.*org/words"):
        scored(folder, cache_folder=cache, local_files_only=True)
    assert hub.asked == []
    hub.repositories["org/words"] = TOKENIZER
    first = scored(folder, cache_folder=cache)
    other = [(query.replace("sky", "bread"), text.replace("sky", "bread")) for query, text in SOME]
    np.testing.assert_allclose(first, oracle(build("bert"), other), rtol=0, atol=1e-4)
    hub.asked.clear()
    shutil.rmtree(tmp_path / "modules")
    again = scored(folder, cache_folder=cache, local_files_only=True)
    assert (again.tolist(), hub.asked) == (first.tolist(), [])


OWN = (
    "from transformers import BertForSequenceClassification\n"
    "class JinaBertForSequenceClassification(BertForSequenceClassification):\n"
    "    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **options):\n"
    "        answer = super().forward(input_ids, attention_mask, token_type_ids)\n"
    "        answer.logits = answer.logits + 0.01 * attention_mask.sum(1, keepdim=True)\n"
    "        return answer\n"
)
"""A class of its own among the weights, as Jina's first rerankers have: lengths count in it."""


def test_jina_v1_by_its_own_code_or_by_its_onnx_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trusted, its class scores, not the BERT of its model_type; the file needs no trust."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    name = "JinaBertForSequenceClassification"
    use = {"AutoModelForSequenceClassification": f"modeling_bert.{name}"}
    folder = copy_of("bert", tmp_path / "jina", architectures=[name], auto_map=use)
    (folder / "modeling_bert.py").write_text(OWN)
    plain = oracle(build("bert"), SOME, activation="identity")
    lengths = encoder_for(build("bert")).preprocess(SOME)["attention_mask"].sum(1).numpy()
    scores = scored(folder)
    np.testing.assert_allclose(scores, plain + 0.01 * lengths, rtol=0, atol=1e-4)
    with pytest.raises(ModelError, match=rf"{name}.*trust_remote_code=True.*ONNX file"):
        scored(folder, trust_remote_code=False)
    (folder / "onnx").mkdir()
    shutil.copyfile(exported("bert") / "model.onnx", folder / "onnx" / "model.onnx")
    by_file = scored(folder, backend="onnx", trust_remote_code=False)
    np.testing.assert_allclose(by_file, plain, rtol=0, atol=1e-4)


def test_offline_another_cache_has_nothing_of_it(tmp_path: Path) -> None:
    """local_files_only holds for the code too; a file that is not there is named."""
    folder, cache = gte(tmp_path / "model"), tmp_path / "cache"
    options = {"trust_remote_code": True, "local_files_only": True, "cache_folder": str(cache)}
    with pytest.raises(ModelError, match=r"takes its code from another repository.*org/new-impl"):
        Reranker(str(folder), backend="torch", device="cpu", **options)
    files = {"configuration.py": CODE["configuration.py"]}
    lay_out_cache(cache, "org/new-impl", files)
    with pytest.raises(ModelError, match=r"code from org/new-impl, and modeling\.py is not there"):
        Reranker(str(folder), backend="torch", device="cpu", **options)


def test_without_trust_nothing_is_asked_for(tmp_path: Path) -> None:
    """The class is refused with the cure, and no hub is looked for."""
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        Reranker(str(gte(tmp_path / "model")), backend="torch", device="cpu")
