"""The default model's files: one weights file, two graphs over it, and torch's copy of it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import external_data_helper
from safetensors.numpy import load_file
from transformers import BertConfig, BertForSequenceClassification

from rerank_adapters import EarlyExit, Reranker
from rerank_adapters.checkpoints.tensors import read_tensors
from rerank_adapters.errors import ConfigError, ModelError
from rerank_adapters.export import gate
from rerank_adapters.loading import bundled
from tests.checkpoints import PAIRS, build, encoder_for

EXITS = {
    "exit_heads.safetensors",
    *(f"model{dtype}_part{number}.onnx" for dtype in ("", "_int8") for number in range(4)),
    "rerank_adapters.json",
}
FILES = {
    "checksums.json",
    "config.json",
    "model.onnx",
    "model.safetensors",
    "model_int8.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
}
LIMIT = 30_000_000
ROOT = Path(__file__).parents[2]


def packing() -> ModuleType:
    """The training folder's pack.py, which is a script and no package."""
    file = Path(__file__).parents[2] / "notebooks" / "training" / "pack.py"
    spec = importlib.util.spec_from_file_location("pack", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT as the package would ship it. Read-only."""
    folder = tmp_path_factory.mktemp("packed") / "bundled"
    packing().pack(build("bert"), folder)
    return folder


@pytest.fixture
def as_default(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny packed model in place of the default one."""
    monkeypatch.setattr(bundled, "folder", lambda: packed)
    return packed


# ------------------------------------------------------------------------------------ what ships


def test_shipped_files() -> None:
    """The installed package holds the whole model, as its checksums say, in at most 30 MB."""
    folder = bundled.folder()
    assert set(bundled.verify(folder)) == (FILES | EXITS) - {"checksums.json"}
    assert sum((folder / name).stat().st_size for name in FILES | EXITS) <= LIMIT


@pytest.mark.parametrize("layer", [2, 3, 4])
def test_shipped_exits_go_on_to_the_score_of_all_layers(layer: int) -> None:
    """Bit for bit, and the best of all layers are among those who go on: the heads were trained."""
    lines = (ROOT / "notebooks" / "training" / "plain.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines[::4]]
    answers = [answer for _, answer in pairs]
    with Reranker() as plain, Reranker(early_exit=EarlyExit(layer, 15)) as early:
        found = []
        for question, _ in pairs[:10]:
            whole, ranking = plain.rerank(question, answers), early.rerank(question, answers)
            scores = {it.index: it.score for it in whole}
            assert [it.exit for it in ranking] == [None] * 15 + [layer] * (len(answers) - 15)
            assert all(scores[it.index] == it.score for it in ranking[:15])
            found.append(whole[0].index in ranking.indices[:15])
    assert np.mean(found) >= 0.9


def test_shipped_model_scores(tmp_path: Path) -> None:
    """Torch on the unpacked weights and both graphs agree: the gate's own bounds.

    float32 within 1e-4; int8 within its drift, and alone as in company to the bit.
    """
    from rerank_adapters.export import network

    probes = gate.probe(network.load(bundled.unpack(tmp_path)))
    gate.check(bundled.folder() / "model.onnx", probes, "float32")
    gate.check(bundled.folder() / "model_int8.onnx", probes, "int8")


def test_shipped_int8_drifts_little(tmp_path: Path) -> None:
    """Over real English pairs int8 moves logits by at most 5 % of their spread, root mean square.

    Measured: 2 %, and a third of what onnxruntime's per-tensor dynamic int8 costs.
    """
    pairs = [pair for pair in PAIRS if pair[0].isascii() and pair[1].isascii()]
    case = gate._ask(encoder_for(bundled.unpack(tmp_path)), pairs)
    int8 = gate.run(gate.open_session(bundled.folder() / "model_int8.onnx"), case.feed)
    share = np.sqrt(np.mean((int8 - case.logits) ** 2)) / case.logits.std()
    print(f"drift {share:.4f} of the standard deviation")
    assert share <= 0.05


# -------------------------------------------------------------------------------------- the layout


def test_scores_of_plain_questions_say_what_they_mean() -> None:
    """Every fifth of the plain pairs: right answers score high, nothing scores near nought.

    The bounds are the training recipe's own goals; `robust.py` measures all 200.
    """
    lines = (ROOT / "notebooks" / "training" / "plain.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines[::5]]
    questions, answers = [question for question, _ in pairs], [answer for _, answer in pairs]
    with Reranker() as reranker:
        table = np.stack([reranker.score(question, answers) for question in questions])
        blank = np.stack([reranker.score(question, ["", " \n"]) for question in questions])
        foreign = reranker.score(questions[0], ["Der Zug fährt um neun.", "Поезд уходит вечером."])
    right = table.diagonal().copy()
    np.fill_diagonal(table, 0)
    assert np.median(right) >= 0.8
    assert np.mean(right > table.max(1)) >= 0.95
    assert table.sum() / (table.size - len(right)) <= 0.02
    assert blank.mean() <= 0.02
    assert foreign.max() <= 0.02


def test_files(packed: Path) -> None:
    """Everything is there, nothing else, and each file but the checksums has its checksum."""
    assert {path.name for path in packed.iterdir()} == FILES
    assert set(bundled.verify(packed)) == FILES - {"checksums.json"}


def test_one_weights_file(packed: Path) -> None:
    """Both graphs take every weight from model.safetensors, and hold none themselves."""
    for name in ("model.onnx", "model_int8.onnx"):
        graph = onnx.load(packed / name, load_external_data=False).graph
        outside = [t for t in graph.initializer if external_data_helper.uses_external_data(t)]
        inside = [t for t in graph.initializer if t not in outside]
        locations = {external_data_helper.ExternalDataInfo(t).location for t in outside}
        assert locations == {"model.safetensors"}
        assert max(len(t.raw_data) for t in inside) <= 4096
        matrices = [t for t in outside if t.data_type == onnx.TensorProto.INT8]
        assert len(matrices) == 2 * 6 + 1 + 2  # six per layer, the pooler, words and positions


def test_weights_under_their_usual_names(packed: Path) -> None:
    """Values · scale / factor is the trained weight to half a step, all else to the bit."""
    stored = load_file(packed / "model.safetensors")  # the format's own reader reads ours
    trained = load_file(build("bert") / "model.safetensors")
    unpacked = bundled.dequantize(read_tensors(packed / "model.safetensors"))
    assert set(unpacked) == set(trained)
    for name, weight in trained.items():
        assert unpacked[name].dtype == np.float32
        values = stored[name]
        if values.dtype != np.int8:
            np.testing.assert_array_equal(unpacked[name], weight)
            continue
        assert np.abs(values).max() == 63
        step = stored[f"{name}.scale"] / stored.get(f"{name}.factor", np.float32(1))
        step = np.broadcast_to(step, values.shape)
        step = step.T if stored[f"{name}.scale"].ndim == 1 else step
        # 1.001: the quotient of two rounded float32 numbers is rounded too.
        assert (np.abs(unpacked[name] - weight) <= 0.5001 * step).all()


def test_aligned_and_ordered(packed: Path) -> None:
    """Tensors start where float32 may be read in place, and the header says so truly."""
    data = (packed / "model.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    assert start % 64 == 0
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    assert all(entry["data_offsets"][0] % 4 == 0 for entry in entries if entry["dtype"] == "F32")
    assert max(entry["data_offsets"][1] for entry in entries) == len(data) - start


def test_three_ways_to_score(as_default: Path, tmp_path: Path) -> None:
    """Torch on the unpacked folder, float32 and int8 graphs: the same model.

    1e-4: float32 sums in another order. int8: a twentieth of the spread, activations alone round.
    """
    case = gate._ask(encoder_for(bundled.unpack(tmp_path)), PAIRS)
    exact = gate.run(gate.open_session(as_default / "model.onnx"), case.feed)
    np.testing.assert_allclose(exact, case.logits, atol=1e-4)
    rounded = gate.run(gate.open_session(as_default / "model_int8.onnx"), case.feed)
    assert np.sqrt(np.mean((rounded - case.logits) ** 2)) <= 0.05 * case.logits.std()


def test_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beyond the limit are not put in place."""
    pack = packing()
    monkeypatch.setattr(pack, "LIMIT", 1000)
    monkeypatch.setattr(gate, "check", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"take \d+ bytes of at most 1000"):
        pack.pack(build("bert"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ verification


@pytest.mark.parametrize("name", sorted(FILES))
def test_damage_is_named(packed: Path, tmp_path: Path, name: str) -> None:
    """One flipped bit, or no file at all: the error names the file and the cure."""
    folder = tmp_path / "copy"
    shutil.copytree(packed, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0x80
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} is damaged .*pip install --force-reinstall"):
        bundled.verify(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"{name} is damaged"):
        bundled.verify(folder)


def test_foreign_file_is_refused(packed: Path, tmp_path: Path) -> None:
    """A sound file of another model is as wrong as a damaged one."""
    folder = tmp_path / "copy"
    shutil.copytree(packed, folder)
    shutil.copyfile(build("bert_128") / "config.json", folder / "config.json")
    with pytest.raises(ModelError, match=r"config\.json is damaged or not a file of the default"):
        bundled.verify(folder)


# --------------------------------------------------------------------------------------- unpacking


def test_unpacked_is_an_ordinary_checkpoint(as_default: Path, tmp_path: Path) -> None:
    """Transformers loads it with nothing missing and nothing left over."""
    folder = bundled.unpack(tmp_path)
    model, report = BertForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model.config, BertConfig)
    assert not any(report.values())
    assert bundled.unpack(str(tmp_path)) == folder
    assert {path.name for path in tmp_path.iterdir()} == {folder.name}


def test_unpacking_a_damaged_model_leaves_nothing(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be trusted is not unpacked."""
    folder = tmp_path / "copy"
    shutil.copytree(packed, folder)
    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(bundled, "folder", lambda: folder)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        bundled.unpack(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_failing_midway_leaves_nothing(
    as_default: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves no half-written folder behind, and the next try succeeds."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bundled, "write_tensors", full)
        with pytest.raises(ConfigError, match=r"cache_folder must be .*No space left"):
            bundled.unpack(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (bundled.unpack(tmp_path) / "model.safetensors").exists()


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


SPOILED = {
    "weights": ("model.safetensors", _flip),
    "tokenizer": ("tokenizer.json", _flip),
    "one is gone": ("config.json", Path.unlink),
    "one too many": ("modules.json", lambda file: file.write_text("[]")),
}


@pytest.mark.parametrize("how", SPOILED)
def test_an_unpacked_copy_is_checked_as_shipped_files_are(
    as_default: Path, tmp_path: Path, how: str
) -> None:
    """One flipped bit, a file gone or added: an error that says what to remove."""
    name, spoil = SPOILED[how]
    folder = bundled.unpack(tmp_path)
    spoil(folder / name)
    with pytest.raises(ModelError, match=rf"{name} .*: remove the folder"):
        bundled.unpack(tmp_path)
    shutil.rmtree(folder)
    assert bundled.unpack(tmp_path) == folder
    assert bundled.unpack(tmp_path) == folder  # and what was written is what is expected


@pytest.mark.parametrize("where", ["a file", "/proc/nothing"])
def test_a_cache_that_cannot_be_written_names_the_cure(
    as_default: Path, tmp_path: Path, where: str
) -> None:
    """The option, what it is, and the two ways out."""
    (tmp_path / "a file").write_text("")
    with pytest.raises(ConfigError, match=r"cache_folder must be .*pass cache_folder="):
        bundled.unpack(tmp_path / where)


def test_unpacking_at_once_in_threads(as_default: Path, tmp_path: Path) -> None:
    """Eight threads released together get one folder, whole."""
    start, found = threading.Barrier(8), []

    def unpack() -> None:
        start.wait()
        found.append(bundled.unpack(tmp_path))

    threads = [threading.Thread(target=unpack) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {found[0].name}


UNPACK = """
import sys
from pathlib import Path
from rerank_adapters.loading import bundled
bundled.folder = lambda: Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(bundled.unpack(sys.argv[2]))
print([name for name in ("torch", "onnxruntime", "safetensors") if name in sys.modules])
"""


def test_unpacking_at_once_in_processes(packed: Path, tmp_path: Path) -> None:
    """Three processes let go together agree on one folder; none needs torch or a runtime."""
    command = [sys.executable, "-c", UNPACK, str(packed), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120)[0].splitlines() for process in running]
    assert len({answer[0] for answer in answers}) == 1
    assert all(answer[1] == "[]" for answer in answers)
    assert len(list(tmp_path.iterdir())) == 1
