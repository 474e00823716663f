"""Checkpoint → ONNX without optimum: traced, rewritten, kept only if it scores as torch does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from .. import __version__
from ..checkpoints import ABSENT, HEADS, Checkpoint, ExitFiles, Manifest, inside
from ..config import DEFAULT_MODEL, RerankerConfig, SpecialTokens
from ..errors import ConfigError, MissingDependencyError

try:  # before anything else fails for want of them
    import onnx
    import onnxscript  # noqa: F401  # torch.onnx needs it
    import sentence_transformers  # noqa: F401  # it loads what is exported
except ImportError as error:
    raise MissingDependencyError((error.name or "onnx").partition(".")[0], "export") from error

from ..loading import bundled
from ..loading.code import fetch_code
from ..loading.exits import read_heads
from ..loading.hub import CONFIG_FILES, Source, open_model
from ..loading.identity import weights_name
from ..parity.comparison import BOUNDS
from . import files, gate, graph, network, parts, vespa
from .describing import describe
from .framing import Framing
from .rewrites.first_token import keep_first_token
from .rewrites.half import halve
from .rewrites.int8 import quantize
from .rewrites.pooling import sum_in_order
from .rewrites.residual import keep_norms_apart
from .rewrites.smoothing import smooth
from .texts import check_texts

GraphDType = Literal["float32", "float16", "int8"]
"""What a graph is stored and computed in."""

FILE_NAMES: dict[GraphDType, str] = {
    "float32": "model.onnx",
    "float16": "model_fp16.onnx",
    "int8": "model_int8.onnx",
}


def export_onnx(
    model: str | Path,
    folder: str | Path,
    dtype: GraphDType = "float32",
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    prompt: str | None = None,
    template: str | None = None,
    answers: Sequence[str] | None = None,
    label: int | str | None = None,
    special_tokens: SpecialTokens | None = None,
    exits: str | Path | None = None,
) -> Path:
    """Write *model*, a hub id or a local folder, as ONNX into *folder*, and return that folder.

    The graph is `model.onnx`, `model_fp16.onnx` or `model_int8.onnx`: inputs int64 (batch,
    sequence) named `input_ids`, `attention_mask` and, where the model has more than one token type,
    `token_type_ids`; output `logits`, float32 (batch, labels), before any activation. Next to it go
    the tokenizer and configuration files, and `rerank_adapters.json`, which says what was exported
    and, for a yes/no language model, holds its rendered template. *folder* may be the checkpoint
    itself.

    int8 stores weights in 7 bits, one scale per output column and embedding row, and scales
    activations per token, so a score does not depend on its batch, bit for bit.

    *template*, *answers*, *label*, *special_tokens* and *prompt* are those of `RerankerConfig`, for
    a checkpoint whose files do not say them; the export carries them.

    *exits* is a file of exit heads, as `rerank-adapters exits train` writes it; None: the
    checkpoint's own, if it has any. With heads, the graph is written a second time, in parts cut at
    their layers, `NAME_part0.onnx` and on; all of them read their weights from `NAME.onnx_data`.

    Raises ConfigError for an unknown dtype or a folder that cannot be written, and ModelError where
    the checkpoint cannot be loaded, the folder's tokenizer reads texts otherwise than the
    checkpoint does, or the graph drifts from torch; then nothing is written.
    """
    _check(str(model), dtype)
    config = RerankerConfig(
        model=str(model),
        revision=revision,
        token=token,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
        prompt=prompt,
        template=template,
        answers=None if answers is None else tuple(answers),
        label=label,
        special_tokens=special_tokens,
    )
    checkpoint = _fetched(config)
    framing = Framing.of(config, replace(Checkpoint.read(checkpoint), manifest=Manifest()))
    with files.draft(Path(folder).resolve()) as draft:
        _write(config, framing, checkpoint, draft, dtype, _heads(exits, checkpoint))
    return Path(folder)


def export_vespa(
    model: str | Path,
    folder: str | Path,
    dtype: GraphDType = "float32",
    *,
    query_tokens: int = 32,
    rerank_count: int = 100,
    revision: str | None = None,
    token: str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    label: int | str | None = None,
) -> Path:
    """Write *model* as a Vespa application package into *folder*, and return that folder.

    models/model.onnx and models/tokenizer.json; services.xml with the tokenizer's component;
    schemas/passage.sd, whose rank profile has this tokenizer's special ids, this model's length and
    inputs and its activation, over the best *rerank_count* hits; best-paragraph.txt, a profile for
    documents of several paragraphs. Queries keep *query_tokens* tokens, documents the rest.

    Raises what `export_onnx` raises, and ModelError for what Vespa cannot load.
    """
    with tempfile.TemporaryDirectory() as made:
        export_onnx(
            model,
            made,
            dtype,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
            label=label,
        )
        with files.draft(Path(folder).resolve()) as draft:
            vespa.write_application(
                Path(made),
                draft,
                FILE_NAMES[dtype],
                query_tokens=query_tokens,
                rerank_count=rerank_count,
            )
    return Path(folder)


def _fetched(config: RerankerConfig) -> Path:
    """Return the folder of the checkpoint, with the code that is trusted and lies elsewhere."""
    source = open_model(
        config.model,
        revision=config.revision,
        token=config.token,
        cache_folder=config.cache_folder,
        local_files_only=config.local_files_only,
    )
    folder = source.fetch(_wanted(source, trust_remote_code=config.trust_remote_code))
    if config.trust_remote_code:
        fetch_code(config, Checkpoint.read(folder))
    return folder


def _check(model: str, dtype: str) -> None:
    if dtype not in FILE_NAMES:
        raise ConfigError(f"dtype must be one of {', '.join(FILE_NAMES)}: got {dtype!r}")
    if model == DEFAULT_MODEL:
        raise ConfigError(
            f"model must not be {DEFAULT_MODEL!r}: it is ONNX already, model_int8.onnx and "
            f"model.onnx with their weights in model.safetensors, in {bundled.folder()}: copy it"
        )


def _write(
    config: RerankerConfig,
    framing: Framing,
    checkpoint: Path,
    folder: Path,
    dtype: GraphDType,
    heads: Path | None,
) -> None:
    """Write all files of the export; ModelError where they do not score as torch does."""
    oracle = network.load(
        checkpoint,
        trust_remote_code=config.trust_remote_code,
        answers=framing.answers,
        cache_folder=config.cache_folder,
    )
    files.copy_configuration(checkpoint, folder)
    manifest = replace(describe(oracle, checkpoint, framing), weights=weights_name(checkpoint))
    exits = {} if heads is None else read_heads(heads)
    if heads is not None:
        manifest = replace(manifest, exits=ExitFiles(tuple(sorted(exits))))
        shutil.copyfile(heads, folder / HEADS)
    manifest.write(folder)
    if not (folder / "tokenizer.json").exists():
        oracle.tokenizer.save_pretrained(folder)
    check_texts(oracle, framing, checkpoint, folder)
    probes = gate.probe(oracle, framing)
    file = folder / FILE_NAMES[dtype]
    whole = network.build(oracle)
    states = parts.hidden_states(whole, probes[0], sorted(exits)) if exits else {}
    parts.check_heads(exits, states)
    files.write_graph(_rewrite(graph.trace(whole), dtype, probes), file, apart=bool(exits))
    gate.check(file, probes, dtype)
    if exits:
        written = parts.write(file, parts.boundaries(file, probes[0], states))
        parts.check(written, file, probes, BOUNDS[dtype].batch_drift)


def _heads(exits: str | Path | None, checkpoint: Path) -> Path | None:
    """The file of exit heads to export, None for none."""
    if exits is not None:
        return Path(exits).expanduser()
    stated = (Manifest.read(checkpoint) or Manifest()).exits
    return None if stated is ABSENT else inside(checkpoint, stated.heads, said_in="exits")


def _wanted(source: Source, *, trust_remote_code: bool) -> list[str]:
    """Return the files to fetch: configuration, one kind of weights, and code that is trusted."""
    safe = any(name.endswith(".safetensors") and name != HEADS for name in source.files)
    code = ["*.py"] if trust_remote_code else []
    return [*CONFIG_FILES, "*.safetensors" if safe else "*.bin", *code]


def _rewrite(
    model: onnx.ModelProto, dtype: GraphDType, probes: Sequence[gate.Probe]
) -> onnx.ModelProto:
    accelerate(model)
    if dtype == "int8":
        smooth(model, [probe.feed for probe in probes])
        quantize(model)
    elif dtype == "float16":
        halve(model)
    facts = {"rerank_adapters.dtype": dtype, "rerank_adapters.version": __version__}
    onnx.helper.set_model_props(model, facts)
    return model


def accelerate(model: onnx.ModelProto) -> None:
    """Rewrite a traced float32 graph to run faster, and alike in every batch; scores stay."""
    keep_first_token(model)
    keep_norms_apart(model)
    sum_in_order(model)
