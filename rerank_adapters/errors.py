"""Every error this library raises on purpose.

RerankError
├── InputError(ValueError)               query must not be blank: got ''
├── ConfigError(ValueError)              top_n must be at least 1: got 0
│   └── OptionError(TypeError)           got an unexpected keyword argument 'top_k': … called top_n
├── MissingDependencyError(ImportError)  `torch` is not installed: pip install 'rerank-…[torch]'
├── ModelError                           expected a model with 1 or 2 labels: got 3
├── BackendError(RuntimeError)           CUDA was asked for and is not there; a forward pass failed
├── OverloadedError(RuntimeError)        the queue holds 4096 of at most 4096 pairs: retry in 1.2 s
└── ClosedError(RuntimeError)            the reranker is closed

Each doubles a built-in base, so `except ValueError` keeps working. Messages name the field in its
code spelling, the rule, the value got and the cure.
"""

from __future__ import annotations

from .clean import message as shown


class RerankError(Exception):
    """The base of every error raised on purpose.

    Its message is one line, fit for a terminal and a log, and tells no token: what it quotes may
    come from a stranger's file.

    >>> from rerank_adapters import Reranker
    >>> try:
    ...     Reranker("no/such/folder/", local_files_only=True)
    ... except RerankError as error:
    ...     print(type(error).__name__)
    ModelError
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shown(message))


class InputError(RerankError, ValueError):
    """A query, text or per-call argument breaks a rule; the message names it and its index.

    >>> from rerank_adapters.testing import ranker_of
    >>> ranker_of({}).rerank(" ", ["a"])
    Traceback (most recent call last):
    rerank_adapters.errors.InputError: query must not be blank: got ' '
    """


class ConfigError(RerankError, ValueError):
    """A construction argument breaks a rule.

    >>> from rerank_adapters import RerankerConfig
    >>> RerankerConfig(max_length=0)
    Traceback (most recent call last):
    rerank_adapters.errors.ConfigError: max_length must be an int of at least 1: got 0
    """


class OptionError(ConfigError, TypeError):
    """An option that does not exist; a TypeError too, as Python's own would be.

    >>> from rerank_adapters.testing import ranker_of
    >>> try:
    ...     ranker_of({}).rerank("q", ["a"], top_k=3)
    ... except OptionError as error:
    ...     print(str(error).partition(": ")[2])
    top_k is called top_n
    """


class MissingDependencyError(RerankError, ImportError):
    """An optional library is needed and absent.

    `module` is what could not be imported, `extra` the extra of rerank-adapters that brings it, ""
    where it comes with every install.

    >>> print(MissingDependencyError("torch", "torch"))
    `torch` is not installed: pip install 'rerank-adapters[torch]'
    """

    def __init__(self, module: str, extra: str) -> None:
        self.module = module
        self.extra = extra
        package = f"'rerank-adapters[{extra}]'" if extra else "--force-reinstall rerank-adapters"
        super().__init__(f"`{module}` is not installed: pip install {package}")

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str]]:
        return type(self), (self.module, self.extra)


class ModelError(RerankError):
    """A checkpoint's files are missing, damaged or mean something this library cannot score.

    >>> from rerank_adapters import Reranker
    >>> Reranker("./nowhere")
    Traceback (most recent call last):
    rerank_adapters.errors.ModelError: model must be a folder or a hub id: no folder at './nowhere'
    """


class BackendError(RerankError, RuntimeError):
    """The runtime or device asked for cannot be had, or a forward pass failed.

    >>> from rerank_adapters import Reranker
    >>> Reranker(backend="onnx", device="cuda:99")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    rerank_adapters.errors.BackendError: ...device 'cuda:99' was asked for...
    """


class OverloadedError(RerankError, RuntimeError):
    """The queue is full; `retry_after` estimates, in seconds, when there will be room.

    >>> error = OverloadedError("the queue holds 96 of at most 96 pairs", retry_after=1.5)
    >>> error.retry_after
    1.5
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class ClosedError(RerankError, RuntimeError):
    """The reranker was closed, or its engine broke and says why.

    >>> from rerank_adapters import Reranker
    >>> reranker = Reranker()
    >>> reranker.close()
    >>> reranker.rerank("q", ["a"])
    Traceback (most recent call last):
    rerank_adapters.errors.ClosedError: the reranker is closed: load it again
    """
