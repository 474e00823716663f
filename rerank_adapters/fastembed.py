"""fastembed's way: `TextCrossEncoder`, by its names, with raw scores in the order given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from .adapter_fields import RankerSource, pair_scores
from .config import RerankerConfig
from .errors import BackendError, ConfigError, InputError, ModelError
from .protocols import Pair
from .published import FASTEMBED_MODELS, Published
from .sharing import pair_counter

__all__ = ["Device", "ModelSource", "TextCrossEncoder"]

OnnxProvider = str | tuple[str, Mapping[str, Any]]


class Device(StrEnum):
    """Where to compute, as fastembed has it.

    >>> Device("cuda") is Device.CUDA
    True
    """

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


@dataclass(frozen=True)
class ModelSource:
    """Where a custom model's files lie: a hub id. A url of an archive is not taken.

    >>> ModelSource(hf="my-company/reranker").hf
    'my-company/reranker'
    """

    hf: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if self.hf is None and self.url is None:
            raise ConfigError("sources must have hf=, a hub id: got hf=None, url=None")


@dataclass(frozen=True)
class _Description:
    """A model that can be asked for, by fastembed's names."""

    model: str
    sources: dict[str, Any]
    model_file: str
    description: str
    license: str
    size_in_GB: float  # noqa: N815  # fastembed's name
    additional_files: list[str]


class ModelUnavailableError(ModelError, ValueError):
    """A model that cannot be loaded: a ValueError too, as fastembed has it."""


class DeviceUnavailableError(BackendError, ValueError):
    """A provider that is not there: a ValueError too, as fastembed has it."""


_PROVIDERS = {
    "CPUExecutionProvider": ("onnx", "cpu"),
    "CUDAExecutionProvider": ("onnx", "cuda"),
    "OpenVINOExecutionProvider": ("openvino", "cpu"),
}


class TextCrossEncoder:
    """Scores texts with a registered model: its raw outputs as floats, in the order given.

    model_name           one of `list_supported_models`, or of `add_custom_model`; case is ignored
    cache_dir            where hub files are kept; None: $FASTEMBED_CACHE_PATH, else the hub's cache
    threads              CPU threads in one forward; None: those this process may use
    providers            an ONNX Runtime provider, as a name or (name, {"device_id": n})
    cuda                 True, False, or a Device; "auto" takes a GPU that is there
    device_ids           GPUs: the first serves calls, all of them `rerank_pairs(parallel=...)`
    lazy_load            load at the first call, not now
    local_files_only     never ask the network
    specific_model_path  a folder with the model's files, in place of a download

    Raises ConfigError (an argument), ModelError (its files), BackendError (the device): each is a
    ValueError as well.

    >>> TextCrossEncoder.add_custom_model("doc/tiny", ModelSource(hf="doc/tiny"), "model.onnx")
    >>> TextCrossEncoder("doc/tiny", lazy_load=True).model_name
    'doc/tiny'
    """

    _custom: list[_Description] = []  # noqa: RUF012  # one registry for the process, as there
    _lock = Lock()

    def __init__(
        self,
        model_name: str,
        cache_dir: str | Path | None = None,
        threads: int | None = None,
        providers: Sequence[OnnxProvider] | None = None,
        cuda: bool | str | Device = Device.AUTO,
        device_ids: list[int] | None = None,
        lazy_load: bool = False,
        *,
        local_files_only: bool = False,
        specific_model_path: str | Path | None = None,
    ) -> None:
        found = _described(self._descriptions(), model_name)
        self.model_name = model_name
        self.cache_dir = cache_dir or os.environ.get("FASTEMBED_CACHE_PATH") or None
        self.threads = threads
        backend, devices = _devices(providers, cuda, device_ids)
        self._devices = devices
        self._config = RerankerConfig(
            model=str(specific_model_path or found.sources["hf"]),
            file_name=found.model_file,
            cache_folder=self.cache_dir,  # type: ignore[arg-type]  # it takes a Path too
            local_files_only=local_files_only,
            activation="identity",
            backend=backend,  # type: ignore[arg-type]  # one of _PROVIDERS
            device=devices[0],
            num_threads=threads,
        )
        self._source = RankerSource(self._config, None, "TextCrossEncoder")
        if not lazy_load:
            with _as_value_errors():
                self._source.get()

    @classmethod
    def list_supported_models(cls) -> list[dict[str, Any]]:
        """What `model_name` may be, each with its hub id, file, licence and size."""
        return [asdict(one) for one in cls._descriptions()]

    @classmethod
    def add_custom_model(
        cls,
        model: str,
        sources: ModelSource,
        model_file: str = "onnx/model.onnx",
        description: str = "",
        license: str = "",  # noqa: A002  # fastembed's name
        size_in_gb: float = 0.0,
        additional_files: list[str] | None = None,
    ) -> None:
        """Register *model* for this process. ConfigError where the name is taken, in any case."""
        if not getattr(sources, "hf", None):
            raise ConfigError(f"sources must have hf=, a hub id: got {sources!r:.80}")
        made = _Description(
            model,
            _source(sources.hf),
            model_file,
            description,
            license,
            size_in_gb,
            list(additional_files or []),
        )
        with cls._lock:
            if any(model.lower() == one.model.lower() for one in cls._descriptions()):
                raise ConfigError(f"model must be a new name: {model!r} is registered already")
            cls._custom.append(made)

    def rerank(self, query: str, documents: Iterable[str], batch_size: int = 64) -> Iterator[float]:
        """Score each of *documents*, an iterable of any length, read *batch_size* at a time.

        InputError at the first score that is asked for: a blank query, a document that is no str.
        """
        if isinstance(documents, str):
            raise InputError(f"documents must be an iterable of str: got {documents!r:.80}")
        pairs = ((query, document) for document in documents)
        yield from self._scores(self._source, pairs, batch_size)

    def rerank_pairs(
        self, pairs: Iterable[Pair], batch_size: int = 64, parallel: int | None = None
    ) -> Iterator[float]:
        """Score each (query, document) of *pairs*, read *batch_size* at a time.

        parallel: so many workers of one thread each over all device_ids, with a batch for each; 0
        is one for every CPU. They are threads of this process, and what is shorter than a batch
        does without them.
        """
        _check_count("batch_size", batch_size, 1)
        small = _single(pairs) or (isinstance(pairs, list) and len(pairs) < batch_size)
        if parallel is None or small:
            yield from self._scores(self._source, pairs, batch_size)
            return
        _check_count("parallel", parallel, 0)
        workers = parallel or os.cpu_count() or 1
        source = RankerSource(self._parallel(workers), None, "TextCrossEncoder")
        try:
            yield from self._scores(source, pairs, batch_size * workers)
        finally:
            source.close()

    def token_count(self, pairs: Iterable[Pair], batch_size: int = 1024) -> int:
        """How many tokens *pairs* are scored with, cut ones as they are cut; loads no network."""
        total = 0
        for batch in _batches(pairs, batch_size):
            total += sum(self._counter(batch))
        return total

    def close(self) -> None:
        """Let go of the model: later calls raise ClosedError."""
        self._source.close()

    @cached_property
    def _counter(self) -> Any:
        with _as_value_errors():
            return pair_counter(self._config)

    def _parallel(self, workers: int) -> RerankerConfig:
        each = -(-workers // len(self._devices))
        threads = 1 if self._devices == ("cpu",) else self.threads
        return replace(self._config, device=self._devices, num_workers=each, num_threads=threads)

    def _scores(
        self, source: RankerSource, pairs: Iterable[Pair], batch_size: int
    ) -> Iterator[float]:
        for batch in _batches(pairs, batch_size):
            with _as_value_errors():
                scores = pair_scores(source.get(), batch)
            yield from scores

    @classmethod
    def _descriptions(cls) -> list[_Description]:
        return [*map(_known, FASTEMBED_MODELS), *cls._custom]

    def __getstate__(self) -> dict[str, Any]:
        """Without the counter, which is made again: weights and tokenizers never travel."""
        return {name: it for name, it in vars(self).items() if name != "_counter"}


@contextmanager
def _as_value_errors() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelUnavailableError(str(error)) from error
    except BackendError as error:
        raise DeviceUnavailableError(str(error)) from error


def _known(one: Published) -> _Description:
    return _Description(
        model=one.id,
        sources=_source(one.repository),
        model_file=one.file,
        description=", ".join(filter(None, ["a reranker", *one.languages])),
        license=one.licence or "",
        size_in_GB=one.gigabytes or 0.0,
        additional_files=list(one.more),
    )


def _source(hub: str | None) -> dict[str, Any]:
    return {"hf": hub, "url": None, "_deprecated_tar_struct": False}


def _described(known: Sequence[_Description], name: object) -> _Description:
    for one in known:
        if isinstance(name, str) and name.lower() == one.model.lower():
            return one
    raise ConfigError(
        "model_name must be one of TextCrossEncoder.list_supported_models(), or registered by "
        f"add_custom_model; rerank_adapters.Reranker takes any hub id and folder: got {name!r:.80}"
    )


def _devices(
    providers: Sequence[OnnxProvider] | None,
    cuda: bool | str,
    device_ids: Sequence[int] | None,
) -> tuple[str, tuple[str, ...]]:
    """The backend, and the devices by our names; ConfigError where two arguments say it."""
    if cuda not in (True, False, "cpu", "cuda", "auto"):
        raise ConfigError(f'cuda must be True, False, "cpu", "cuda" or "auto": got {cuda!r:.80}')
    wanted = cuda in (True, "cuda")
    if providers is not None:
        if wanted or device_ids is not None:
            raise ConfigError("providers says the device itself: leave cuda and device_ids out")
        return _provided(providers)
    if device_ids is not None:
        _check_ids(device_ids, cuda)
        return "onnx", tuple(f"cuda:{number}" for number in device_ids)
    return "onnx", ("cuda" if wanted else "auto" if cuda == "auto" else "cpu",)


def _provided(providers: Sequence[OnnxProvider]) -> tuple[str, tuple[str, ...]]:
    """The first provider's; a CPU after it would be a silent fallback, and is not taken for one."""
    first = providers[0] if isinstance(providers, list | tuple) and providers else None
    name, options = first if isinstance(first, tuple) and len(first) == 2 else (first, {})
    if name not in _PROVIDERS or set(options) - {"device_id"}:
        listed = ", ".join(_PROVIDERS)
        raise ConfigError(
            f'providers must begin with one of {listed}, alone or with {{"device_id": n}}: got '
            f"{providers!r:.120}"
        )
    backend, device = _PROVIDERS[name]
    if device == "cuda" and "device_id" in options:
        device = f"cuda:{int(options['device_id'])}"
    return backend, (device,)


def _check_ids(device_ids: object, cuda: bool | str) -> None:
    numbers = device_ids if isinstance(device_ids, list | tuple) else []
    plain = all(isinstance(it, int) and not isinstance(it, bool) and it >= 0 for it in numbers)
    if not numbers or not plain:
        raise ConfigError(f"device_ids must be a list of numbers of GPUs: got {device_ids!r:.80}")
    if cuda in (False, "cpu"):
        raise ConfigError(f"device_ids are GPUs, and cuda={cuda!r} asks for none: leave one out")


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be an int of at least {least}: got {value!r:.80}")


def _batches(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    """*pairs* checked, *size* of them at a time, read no further than that."""
    _check_count("batch_size", size, 1)
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise InputError(f"pairs must be an iterable of (query, document) pairs: got {pairs!r:.80}")
    batch: list[Pair] = []
    for index, pair in enumerate([pairs] if _single(pairs) else pairs):
        batch.append(_checked(pair, index))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _single(pairs: object) -> bool:
    """Whether *pairs* is one pair, which fastembed takes too."""
    return isinstance(pairs, tuple) and all(isinstance(text, str) for text in pairs)


def _checked(pair: object, index: int) -> Pair:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"pairs[{index}] must be a (query, document) pair: got {pair!r:.80}")
    query, document = pair
    if not isinstance(query, str) or not query.strip():
        raise InputError(
            f"the query of pair {index} must be a str that is not blank: got {query!r:.80}"
        )
    if not isinstance(document, str):
        raise InputError(f"the document of pair {index} must be a str: got {document!r:.80}")
    return query, document
