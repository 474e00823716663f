"""A model folder is data: no code of it runs unless it was said so, and no file elsewhere is read.

Each attack plants a file that would leave a mark if it ran. The mark stays away, whichever of
sentence-transformers' and transformers' own rules a version has: what names code or other files is
refused before they are handed the folder.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rerank_adapters import ModelError, Reranker
from rerank_adapters.backends.torch import whole
from rerank_adapters.checkpoints import check_files, check_links, inside
from rerank_adapters.export import export_onnx
from rerank_adapters.export.files import draft
from tests.checkpoints import PAIRS, build, oracle
from tests.exported import exported

OWN = "sentence_transformers.base.modules"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What the code of a planted file would write."""
    return tmp_path / "it-ran"


@pytest.fixture
def folder(tmp_path: Path, mark: Path) -> Path:
    """A modular checkpoint with Python files that leave the mark, by every name tried."""
    place = Path(shutil.copytree(build("modular_bert"), tmp_path / "model"))
    code = f"open({str(mark)!r}, 'w').close()\nclass Evil:\n    pass\n"
    for name in ("evil.py", "transformers.py", "torch.py", "sentence_transformers.py"):
        (place / name).write_text(code)
    return place


def change(file: Path, **values: object) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **values}))


def modules(name: str) -> Callable[[Path], None]:
    def attack(folder: Path) -> None:
        stored = json.loads((folder / "modules.json").read_text())
        entry = {"idx": 9, "name": "9", "path": "9_Evil", "type": name}
        (folder / "modules.json").write_text(json.dumps([*stored, entry]))
        (folder / "9_Evil").mkdir()
        (folder / "9_Evil" / "config.json").write_text("{}")

    return attack


def stored(file: str, **values: object) -> Callable[[Path], None]:
    return lambda folder: change(folder / file, **values)


class Bomb:
    """A pickle that would write the mark when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


REFUSED = {
    "a class beside modules.json": modules("evil.Evil"),
    "a class by the name of a library": modules("transformers.Evil"),
    "a class of the standard library": modules("os.system"),
    "a class that is no module": modules("sentence_transformers.SentenceTransformer"),
    "a module that imports what its config names": modules(f"{OWN}.router.Router"),
    "a module's name that goes up": modules("sentence_transformers...evil.Evil"),
    "no class at all": modules(""),
    "any function of torch": stored(
        "config_sentence_transformers.json", activation_fn="torch.seed"
    ),
    "any function of torch, once more": stored(
        "config.json", sentence_transformers={"activation_fn": "torch.hub.list"}
    ),
    "any function of torch, as once stored": stored(
        "config.json", sbert_ce_default_activation_function="torch.cuda.init"
    ),
    "an attention from a hub": stored("config.json", attn_implementation="evil/attention"),
    "pickled weights, read without care": stored(
        "sentence_bert_config.json", model_args={"weights_only": False, "use_safetensors": False}
    ),
    "the tokenizer of another folder": stored(
        "sentence_bert_config.json", tokenizer_name_or_path="/etc"
    ),
    "an argument that is a path": stored(
        "sentence_bert_config.json", processor_kwargs={"anything": "../../etc"}
    ),
    "a base model elsewhere": stored("adapter_config.json", base_model_name_or_path="/etc"),
}

WAYS: dict[str, Callable[[Path], object]] = {
    "load": lambda folder: Reranker(str(folder), backend="torch", device="cpu"),
    "export": lambda folder: export_onnx(folder, folder.parent / "out"),
}


@pytest.mark.parametrize("attack", REFUSED)
@pytest.mark.parametrize("way", WAYS)
def test_what_names_code_is_refused_before_anybody_is_called(
    folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, attack: str, way: str
) -> None:
    """Neither sentence-transformers nor transformers sees the folder; the error says the cure."""

    def called(*_: object, **__: object) -> None:
        raise AssertionError("the folder was handed on")

    REFUSED[attack](folder)
    monkeypatch.setattr(whole, "CrossEncoder", called)
    with pytest.raises(ModelError, match=r"trust_remote_code=True|activation"):
        WAYS[way](folder)
    assert not mark.exists()


AUTO = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")
LEFT_ALONE = {
    "config.json": {"auto_map": {**AUTO, "AutoModelForSequenceClassification": "evil.Evil"}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
    "processor_config.json": {"auto_map": {"AutoProcessor": "evil.Evil"}},
    "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "evil.Evil"}},
    "generation_config.json": {"custom_generate": "evil.py"},
}


@pytest.mark.parametrize("file", LEFT_ALONE)
def test_code_that_only_trust_would_run_is_not_run(folder: Path, mark: Path, file: str) -> None:
    """The model is scored without its code, to the oracle's scores, or refused; nothing runs."""
    change(folder / file, **LEFT_ALONE[file])
    try:
        with Reranker(str(folder), backend="torch", device="cpu") as reranker:
            scores = reranker.score_pairs(PAIRS)
    except ModelError:
        pass
    else:
        np.testing.assert_allclose(scores, oracle(build("modular_bert"), PAIRS), atol=1e-4)
    assert not mark.exists()


def test_code_runs_where_it_was_said_so(folder: Path, mark: Path) -> None:
    """The plants are live: with trust_remote_code=True the first of them runs."""
    modules("evil.Evil")(folder)
    with pytest.raises(ModelError):
        Reranker(str(folder), backend="torch", device="cpu", trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize("way", WAYS)
def test_pickled_weights_go_through_the_safe_loader(tmp_path: Path, mark: Path, way: str) -> None:
    """A pickle that calls something is refused as a ModelError, and calls nothing."""
    folder = Path(shutil.copytree(build("bert"), tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(mark), folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        WAYS[way](folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # it is live


def test_harmless_pickled_weights_load(tmp_path: Path) -> None:
    """The same weights as a pickle of tensors score as they did."""
    folder = Path(shutil.copytree(build("bert"), tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    with Reranker(str(folder), backend="torch", device="cpu") as reranker:
        np.testing.assert_allclose(
            reranker.score_pairs(PAIRS), oracle(build("bert"), PAIRS), atol=1e-4
        )


ELSEWHERE = {
    "a module's path": ("modules.json", [{"type": f"{OWN}.Transformer", "path": "../secret"}]),
    "an absolute module's path": ("modules.json", [{"type": f"{OWN}.Transformer", "path": "/etc"}]),
    "a shard": ("model.safetensors.index.json", {"weight_map": {"a": "../secret/x.safetensors"}}),
    "an absolute shard": ("model.safetensors.index.json", {"weight_map": {"a": "/etc/passwd"}}),
    "a vocabulary": ("tokenizer_config.json", {"vocab_file": "../secret/vocab.txt"}),
    "an absolute vocabulary": ("tokenizer_config.json", {"tokenizer_file": "/etc/passwd"}),
    "one of several tokenizers": ("tokenizer_config.json", {"fast_tokenizer_files": ["../x.json"]}),
    "weights by name": ("config.json", {"transformers_weights": "../secret/x.safetensors"}),
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("attack", ELSEWHERE)
def test_paths_in_files_stay_inside(tmp_path: Path, attack: str, trust: bool) -> None:
    """Whether its code is trusted or not: that is no leave to read other folders."""
    name, content = ELSEWHERE[attack]
    folder = Path(shutil.copytree(build("bert"), tmp_path / "model"))
    (tmp_path / "secret").mkdir()
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="inside"):
        check_files(folder, trust_remote_code=trust)


def test_paths_inside_are_let_through(kind: str) -> None:
    """No checkpoint of the tests names anything that is refused."""
    check_files(build(kind))


LINKED = {
    "torch": ("model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"),
    "onnx": ("model.onnx", "tokenizer.json", "config.json", "rerank_adapters.json"),
}


@pytest.mark.parametrize("backend", LINKED)
@pytest.mark.parametrize("index", range(4))
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, backend: str, index: int) -> None:
    """Even to the very file that would have been there, so that nothing else could be wrong."""
    source = build("bert") if backend == "torch" else exported("bert")
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    name = LINKED[backend][index]
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=f"{name} is a link out of"):
        Reranker(str(folder), backend=backend, device="cpu")
    with pytest.raises(ModelError, match=f"{name} is a link out of"):
        export_onnx(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    """Whatever is in it: what was scored would have come from elsewhere."""
    folder = Path(shutil.copytree(exported("bert"), tmp_path / "model"))
    (folder / "onnx").symlink_to(exported("bert"))
    with pytest.raises(ModelError, match="onnx is a link out of"):
        Reranker(str(folder), backend="onnx", device="cpu")


def test_links_inside_and_links_to_nothing_are_followed(tmp_path: Path) -> None:
    """A link to a neighbour is a second name, and a dangling one is a missing file."""
    folder = Path(shutil.copytree(exported("bert"), tmp_path / "model"))
    (folder / "kept").mkdir()
    (folder / "model.onnx").rename(folder / "kept" / "graph")
    (folder / "model.onnx").symlink_to("kept/graph")
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    (folder / "circle").symlink_to("circle")
    with Reranker(str(folder), backend="onnx", device="cpu") as reranker:
        np.testing.assert_allclose(
            reranker.score_pairs(PAIRS), oracle(build("bert"), PAIRS), atol=1e-4
        )


def snapshot(cache: Path) -> Path:
    place = cache / "models--org--name" / "snapshots" / ("0" * 40)
    place.mkdir(parents=True)
    return place


def test_a_snapshot_links_into_its_own_cache_alone(tmp_path: Path) -> None:
    """Its repository's blobs and the cache's shared store; not other repositories' files."""
    place = snapshot(tmp_path)
    allowed = (
        tmp_path / "models--org--name" / "blobs" / ("a" * 40),
        tmp_path / "blobs" / "ab" / ("ab" * 32),
    )
    refused = (
        tmp_path / "models--org--other" / "blobs" / ("a" * 40),
        tmp_path / "blobs" / "ab" / "id_rsa",
        tmp_path / "models--org--name" / "refs" / "main",
    )
    for target in (*allowed, *refused):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("x")
    link = place / "config.json"
    for target in allowed:
        link.symlink_to(target)
        check_links(place)
        link.unlink()
    for target in refused:
        link.symlink_to(target)
        with pytest.raises(ModelError, match="link out of"):
            check_links(place)
        link.unlink()


def test_blobs_that_are_themselves_a_link_are_refused(tmp_path: Path) -> None:
    """A folder that only looks like a cache, as an archive can be, opens no other folder."""
    place = snapshot(tmp_path)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "id_rsa").write_text("x")
    (tmp_path / "models--org--name" / "blobs").symlink_to(tmp_path / "secret")
    (place / "model.onnx.data").symlink_to("../../blobs/id_rsa")
    with pytest.raises(ModelError, match="link out of"):
        check_links(place)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "x\0y"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    """Up, from the root, or no name at all."""
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="file_name must name files inside"):
        inside(tmp_path / "model", name, said_in="file_name")


def test_an_export_is_not_written_through_a_link(tmp_path: Path) -> None:
    """Neither a file nor a folder of the output leads what is written elsewhere."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    for folder in (out, victim):
        folder.mkdir()
    (victim / "config.json").write_text("precious")
    (out / "config.json").symlink_to(victim / "config.json")
    with draft(out) as written:
        (written / "config.json").write_text("{}")
    assert (victim / "config.json").read_text() == "precious"
    assert (out / "config.json").read_text() == "{}"
    (out / "1_Pooling").symlink_to(victim)

    def write() -> None:
        with draft(out) as written:
            (written / "1_Pooling").mkdir()
            (written / "1_Pooling" / "config.json").write_text("{}")
            (written / "a.json").write_text("{}")

    with pytest.raises(ModelError, match="inside"):
        write()
    assert (victim / "config.json").read_text() == "precious"
    assert not (out / "a.json").exists()  # nothing of it is there
