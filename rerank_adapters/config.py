"""What a reranker is made of: one frozen value, checked when it is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from .backends import BACKENDS
from .calibration import Calibration
from .document_tokens import DocumentTokens
from .early_exit import EarlyExit
from .errors import ConfigError
from .hints import VALUES
from .passages import Windows
from .ranking import Fuse, OnEmptyText, Rest
from .remote import RemoteConfig
from .score_cache import ScoreCache

BackendName = Literal["auto", "onnx", "openvino", "torch"]
DType = Literal["auto", "float32", "float16", "bfloat16", "int8"]
SpecialTokens = Literal["as_text", "as_tokens"]
TokenizerName = Literal["auto", "huggingface", "fast"]
Truncation = Literal["longest_first", "only_second"]
Activation = Literal["default", "sigmoid", "identity", "softmax"]
WhenFull = Literal["block", "error"]

DEFAULT_MODEL = "default"

LIVE = ("cache", "document_tokens")
"""Options that are alive: they change no score, and are never saved, pickled or compared."""


class Option(NamedTuple):
    """What an option is for, and what it says; this text is shown wherever the option is."""

    group: str
    text: str


OPTIONS = {
    "model": Option(
        "model",
        'A hub id, a local folder, or "default": the small English model inside the package.',
    ),
    "revision": Option("model", "A hub branch, tag or commit."),
    "file_name": Option(
        "model", 'Which ONNX file of the checkpoint to run, such as "onnx/model_O3.onnx".'
    ),
    "cache_folder": Option(
        "model",
        "Where hub files and unpacked weights are kept. None: the library's own cache folder.",
    ),
    "local_files_only": Option("model", "Never ask the network."),
    "token": Option("model", "A hub token; never shown, saved or pickled."),
    "trust_remote_code": Option(
        "model", "Run Python code that the checkpoint brings. Off, because it runs as you."
    ),
    "prompt": Option(
        "text",
        "Instruction put before the query, as the checkpoint's family writes it. None: its own.",
    ),
    "template": Option(
        "text",
        "A plain frame for models that read a pair as one text: {query} and {document} exactly "
        "once, {instruction} (the prompt) at most once; any other brace is text, but for {|}, at "
        "which tokens are joined instead of texts. None: the checkpoint's own, or for a known hub "
        "id its card's.",
    ),
    "answers": Option(
        "text",
        'A language model\'s words for relevant and not, such as ("yes", "no"), or one alone: '
        "its score is the lead of the one's logit over the other's, at the last token.",
    ),
    "label": Option(
        "text",
        'The label that means "relevant", by index or name, such as "entailment". None: of two '
        "labels the second.",
    ),
    "max_length": Option(
        "text",
        "Tokens per pair, special tokens included. None: the model's own limit, which also caps "
        "it.",
    ),
    "truncation": Option(
        "text",
        'Which side of a pair loses tokens: the longer one ("longest_first"), or the document '
        'alone ("only_second").',
    ),
    "query_max_tokens": Option("text", "Tokens of the query that are kept. None: all."),
    "windows": Option(
        "text",
        "Read documents longer than a window in several: Windows(tokens, stride, aggregate), or a "
        "mapping of these. The ranking says where the best one stands (span). None: cut them.",
    ),
    "special_tokens": Option(
        "text",
        'What "[SEP]" or "<|im_end|>" in a query or a document is: text ("as_text"), so that no '
        'text ends its part of a pair or speaks for the model, or the token ("as_tokens"). None: '
        "text for models with a chat template, tokens for others, as sentence-transformers has it.",
    ),
    "activation": Option(
        "text",
        'logits → score: "sigmoid", "identity" or "softmax". "default": what the checkpoint says, '
        "else sigmoid (two labels: softmax).",
    ),
    "calibration": Option(
        "text",
        "What makes scores probabilities: the file that `rerank-adapters calibrate` wrote, "
        "Calibration(temperature, bias), or a mapping of these. Order and ties stay; a file of "
        "other weights is refused. None: scores are the activation's.",
    ),
    "on_empty_text": Option(
        "text",
        'Blank documents in a ranking. "keep_last": after all others in the order given, with 0.0 '
        'or the lowest score where that is lower, and below every score_threshold. "drop": left '
        'out. "error": InputError. "score": ranked as any. score() gives the model\'s own number.',
    ),
    "rerank_count": Option(
        "phases",
        "How many candidates of a query are scored: the first ones, in the order given. None: all.",
    ),
    "rest": Option(
        "phases",
        'Candidates beyond rerank_count. "drop": left out. "keep_below": after all others in the '
        "order given, with their retrieval score (stage=0), below every score_threshold. "
        '"rescale": with retrieval scores moved to the range of the others, as Vespa does.',
    ),
    "fuse": Option(
        "phases",
        'Put the model\'s ranking and the first stage\'s scores together: "rrf", "linear", '
        "Fuse(method, weights, k), or a mapping of these. The score, and so score_threshold, is "
        "then the fused one. None: the model alone ranks.",
    ),
    "early_exit": Option(
        "phases",
        "Let all candidates of a query run some layers, and only the best go on: "
        "EarlyExit(layer, keep, heads), or a mapping of these. Several layers, 3+4, and as many "
        "keeps, 12+4, let fewer and fewer pass. Who stopped ranks below who went further, with "
        "the exit head's score, below every score_threshold. None: all run all layers.",
    ),
    "backend": Option(
        "runtime",
        '"onnx", "openvino" or "torch". "auto": the default model → onnx; a GPU, torch and '
        "weights for it → torch; else onnx where the checkpoint has a float32 ONNX file, or no "
        "weights that torch can read; else torch. info().why says why.",
    ),
    "device": Option(
        "runtime",
        '"auto", "cpu", "cuda", "cuda:1", "mps", or several of them, which share one queue.',
    ),
    "dtype": Option(
        "runtime",
        '"float32", "float16", "bfloat16" or "int8". "auto": int8 for the default model on onnx; '
        "of other ONNX files the one there is, float32 first; on torch float32 on CPU, half "
        "precision on GPU.",
    ),
    "num_workers": Option(
        "runtime",
        "Threads that run forwards at once on each device. None: two on CUDA, so that a batch is "
        "put together and copied while another is computed; on CPUs with onnx one for every two "
        "of them, two to eight, unless num_threads is given; else one.",
    ),
    "num_threads": Option(
        "runtime",
        "CPU threads in one forward, on onnx. None: the CPUs this process may use (affinity, "
        "cgroup quota), less one for each other worker. torch has one pool for the process, so "
        "there it must be None.",
    ),
    "max_batch_tokens": Option(
        "runtime", "Padded tokens in one forward. None: the backend's own choice for its device."
    ),
    "tokenizer": Option(
        "runtime",
        'What reads texts: "huggingface" (tokenizers), or "fast" (nanotoken, of the extra '
        'fast-tokenizers), to the same ids. "auto": the fast one where it is installed and proved '
        "equal at load.",
    ),
    "cache": Option(
        "runtime",
        "Remember scores: ScoreCache.memory(bytes=...), ScoreCache.at(path, bytes=..., ttl=...), "
        "or a mapping of these. It is alive, so it is never saved, pickled or compared.",
    ),
    "document_tokens": Option(
        "runtime",
        "Documents' tokens, read once and found by document id: DocumentTokens.memory(), "
        "DocumentTokens.at(folder), or the folder's path. Never saved, pickled or compared.",
    ),
    "remote": Option(
        "runtime",
        "A server that scores in place of a model here: RemoteConfig(url, dialect, model, ...), or "
        "a mapping of these; text-embeddings-inference, vLLM, Infinity, Cohere or Jina.",
    ),
    "max_queue_pairs": Option("queue", "Pairs that may wait at once. None: no bound."),
    "max_queue_tokens": Option("queue", "Tokens that may wait at once. None: no bound."),
    "when_full": Option(
        "queue",
        'What a full queue does to a new request: "block" it, or "error" with OverloadedError.',
    ),
}
"""Every option, grouped by purpose, in the order in which signatures have them."""


def described() -> str:
    """Every option with its text, by group: what docstrings show."""
    lines: list[str] = []
    for group in dict.fromkeys(option.group for option in OPTIONS.values()):
        lines += ["", f"**{group}**", ""]
        lines += [f"- `{name}`: {it.text}" for name, it in OPTIONS.items() if it.group == group]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerConfig:
    """Everything that `Reranker` takes. Two equal values load the same reranker.

    >>> config = RerankerConfig(max_length=256)
    >>> config == RerankerConfig(max_length=256), config.model
    (True, 'default')
    """

    model: str = DEFAULT_MODEL
    revision: str | None = None
    file_name: str | None = None
    cache_folder: str | None = None
    local_files_only: bool = False
    token: str | None = field(default=None, repr=False)
    trust_remote_code: bool = False

    prompt: str | None = None
    template: str | None = None
    answers: tuple[str, ...] | None = None
    label: int | str | None = None
    max_length: int | None = None
    truncation: Truncation = "longest_first"
    query_max_tokens: int | None = None
    windows: Windows | None = None
    special_tokens: SpecialTokens | None = None
    activation: Activation = "default"
    calibration: Calibration | None = None
    on_empty_text: OnEmptyText = "keep_last"

    rerank_count: int | None = None
    rest: Rest = "drop"
    fuse: Fuse | None = None
    early_exit: EarlyExit | None = None

    backend: BackendName = "auto"
    device: str | tuple[str, ...] = "auto"
    dtype: DType = "auto"
    num_workers: int | None = None
    num_threads: int | None = None
    max_batch_tokens: int | None = None
    tokenizer: TokenizerName = "auto"
    cache: ScoreCache | None = field(default=None, repr=False, compare=False)
    document_tokens: DocumentTokens | None = field(default=None, repr=False, compare=False)
    remote: RemoteConfig | None = None

    max_queue_pairs: int | None = None
    max_queue_tokens: int | None = None
    when_full: WhenFull = "block"

    def __post_init__(self) -> None:
        for entry in fields(self):  # NumPy's integers are numbers too; JSON wants plain ones
            number = getattr(self, entry.name)
            if isinstance(number, Integral) and not isinstance(number, int):
                object.__setattr__(self, entry.name, int(number))
        for name in ("backend", "dtype", "device", "activation"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))
        object.__setattr__(self, "model", _text("model", self.model))
        if self.cache_folder is not None:
            object.__setattr__(self, "cache_folder", _text("cache_folder", self.cache_folder))
        object.__setattr__(self, "device", _devices(self.device))
        _check_frame(self)
        object.__setattr__(self, "windows", Windows.of(self.windows))
        object.__setattr__(self, "fuse", Fuse.of(self.fuse))
        object.__setattr__(self, "calibration", Calibration.of(self.calibration))
        object.__setattr__(self, "early_exit", EarlyExit.of(self.early_exit))
        _check_early_exit(self)
        object.__setattr__(self, "cache", ScoreCache.of(self.cache))
        object.__setattr__(self, "document_tokens", DocumentTokens.of(self.document_tokens))
        object.__setattr__(self, "remote", RemoteConfig.of(self.remote))
        for name, hint in get_type_hints(type(self)).items():
            if name not in _CHECK_THEMSELVES:
                _check(name, getattr(self, name), hint)
        for name in ("num_threads", "num_workers"):
            threads = getattr(self, name)
            if threads is not None and threads > MOST_THREADS:
                raise ConfigError(f"{name} must be at most {MOST_THREADS}: got {threads}")
        _check_backend(self)
        _check_remote(self)

    def __getstate__(self) -> list[object]:
        """Every field in order, without token and what is alive: a pickle may go anywhere."""
        left_out = ("token", *LIVE)
        return [
            None if entry.name in left_out else getattr(self, entry.name) for entry in fields(self)
        ]

    def __copy__(self) -> RerankerConfig:
        """Itself, token and all: it never changes, and stays in this process."""
        return self

    def __deepcopy__(self, memo: object) -> RerankerConfig:
        return self

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices asked for, one or several."""
        return (self.device,) if isinstance(self.device, str) else self.device


_CHECK_THEMSELVES = (
    *("answers", "label", "windows", "calibration", "fuse", "early_exit", "remote"),
    *LIVE,
)


def _plain(name: str, value: Any) -> Any:
    """*value* by its name here, where another library's meaning is plain.

    None is the default, torch.float16 "float16", torch.device("cuda", 1) and 1 are "cuda:1".
    """
    if value is None:
        return "default" if name == "activation" else "auto"
    if name == "device" and isinstance(value, list | tuple) and value and None not in value:
        return tuple(_plain(name, one) for one in value)
    if name == "device" and isinstance(value, Integral) and not isinstance(value, bool):
        return f"cuda:{value}"
    kind = type(value)
    if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    return value


def _text(name: str, value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} must be a non-empty str or a Path: got {value!r}")
    return value


RerankerConfig.__doc__ = f"{RerankerConfig.__doc__}\n{described()}"


def _check_frame(config: RerankerConfig) -> None:
    """A frame names its texts once, answers are one or two words, a label is an index or a name."""
    template, answers, label = config.template, config.answers, config.label
    if isinstance(template, str):
        counts = {name: template.count(f"{{{name}}}") for name in _FIELDS}
        if counts["query"] != 1 or counts["document"] != 1 or counts["instruction"] > 1:
            raise ConfigError(
                "template must have {query} and {document} exactly once and {instruction} at most "
                f"once: got {template!r}"
            )
        between = re.split(r"\{query\}|\{document\}", template)[1]
        if "{|}" in template and "{|}" not in between:
            raise ConfigError(
                "template must have {|} between {query} and {document} where it has one: got "
                f"{template!r}"
            )
    if answers is not None:
        words = list(answers) if isinstance(answers, list | tuple) else []
        if not 1 <= len(words) <= 2 or not all(isinstance(it, str) and it for it in words):
            raise ConfigError(
                f'answers must be one or two words, such as ("yes", "no"): got {answers!r}'
            )
        object.__setattr__(config, "answers", tuple(words))
    if isinstance(label, bool) or not (label is None or isinstance(label, int | str)):
        raise ConfigError(f"label must be an index, a name or None: got {label!r}")


def _check_early_exit(config: RerankerConfig) -> None:
    """Refuse what would put who stopped early beside who went on: their scores are of two kinds."""
    if config.early_exit is None:
        return
    given = [name for name in ("windows", "fuse") if getattr(config, name) is not None]
    if config.rest == "rescale":
        given.append('rest="rescale"')
    if given:
        raise ConfigError(
            f"early_exit ranks who stopped below who went on, by scores of two kinds, so it cannot "
            f"go with {' and '.join(given)}: got {config.early_exit!r}; give one of them"
        )


_FIELDS = ("query", "document", "instruction")


def _check_backend(config: RerankerConfig) -> None:
    """What the backend that was asked for cannot do, as far as the registry knows."""
    if config.backend == "auto":
        return
    entry = BACKENDS[config.backend]
    if config.dtype not in ("auto", *entry.dtypes):
        able = [f'"{name}"' for name, other in BACKENDS.items() if config.dtype in other.dtypes]
        raise ConfigError(
            f'dtype "{config.dtype}" needs backend {" or ".join(able)}: '
            f'got backend="{config.backend}"'
        )
    if config.file_name is not None and entry.reads != "onnx":
        able = [f'"{name}"' for name, other in BACKENDS.items() if other.reads == "onnx"]
        raise ConfigError(
            f"file_name names an ONNX file and needs backend {' or '.join(able)}: "
            f"got {config.file_name!r}"
        )


BESIDE_REMOTE = (
    "remote",
    "activation",
    "calibration",
    "on_empty_text",
    "rerank_count",
    "rest",
    "fuse",
    "cache",
)
"""Options that mean something where a server scores; the others concern a model that is here."""


def _check_remote(config: RerankerConfig) -> None:
    given = [
        entry.name
        for entry in fields(config)
        if entry.name not in BESIDE_REMOTE and getattr(config, entry.name) != entry.default
    ]
    if config.remote is None:
        return
    if given:
        raise ConfigError(
            f"remote names a server, where {', '.join(given)} would change nothing: leave them out"
        )
    if config.activation == "softmax":
        raise ConfigError("activation must be 'sigmoid' or 'identity' for a server: got 'softmax'")


MOST_THREADS = 1024
"""More than any machine's CPUs; runtimes abort the process where the system has no more threads."""

_DEVICE = re.compile(r"([a-z]+)(:[0-9]+)?")
_WITHOUT_NUMBER = ("auto", "cpu", "mps")


def _devices(value: object) -> str | tuple[str, ...]:
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, Sequence) or not several:
        raise ConfigError(f"device must be a str or a non-empty sequence of them: got {value!r}")
    for device in several:
        if not _is_device(device):
            raise ConfigError(
                f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps": got {device!r}'
            )
    return value if isinstance(value, str) else tuple(several)


def _is_device(value: object) -> bool:
    """Whether a backend runs on a device of that name."""
    found = _DEVICE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return False
    kinds = {"auto", *(kind for entry in BACKENDS.values() for kind in entry.devices)}
    return found[1] in kinds and not (found[2] and found[1] in _WITHOUT_NUMBER)


def _words(name: str, hint: Any) -> tuple[str, ...]:
    """The words that an option takes, () where it takes anything else."""
    kinds = ("auto", *BACKENDS) if name == "backend" else get_args(hint)
    if kinds and get_args(kinds[0]):  # words, or None
        kinds = get_args(kinds[0])
    return kinds if all(isinstance(kind, str) for kind in kinds) else ()


def _check_word(name: str, value: object, words: tuple[str, ...], optional: bool) -> None:
    if value in words or (value is None and optional):
        return
    listed = ", ".join(f'"{word}"' for word in words) + (", or None" if optional else "")
    known = VALUES.get(str(value))
    called = f": it is called {known}" if known else ""
    raise ConfigError(f"{name} must be one of {listed}: got {value!r}{called}")


def _check(name: str, value: object, hint: Any) -> None:
    """Literals hold one of their words, bools are bools, whole numbers are at least 1."""
    choices, words = get_args(hint), _words(name, hint)
    if isinstance(hint, type) and hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False: got {value!r}")
    elif words:
        _check_word(name, value, words, type(None) in choices)
    elif hint is int or int in choices:
        if value is None and hint is not int:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be an int of at least 1: got {value!r}")
    elif value is not None and name != "device" and not isinstance(value, str):
        shown = type(value).__name__ if name == "token" else repr(value)  # it may be a secret
        raise ConfigError(f"{name} must be a str or None: got {shown}")
    elif name not in ("prompt", "device") and isinstance(value, str) and not value.strip():
        raise ConfigError(f"{name} must be None or a str that is not blank: got {value!r}")
