"""A checkpoint's files, from a hub or a folder. The only user of huggingface_hub."""

from __future__ import annotations

import errno
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..checkpoints import check_links
from ..errors import ConfigError, ModelError, RerankError

if TYPE_CHECKING:
    from huggingface_hub import CachedRevisionInfo

CONFIG_FILES = (
    "*.json",
    "*/config.json",
    "*.model",
    "*.jinja",
    "vocab.txt",
    "merges.txt",
    "additional_chat_templates/*",
)
"""Everything but weights: small, and read by both backends."""


UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
"""What the system says of a cache that cannot be written."""


class Source(Protocol):
    """A checkpoint's files, not all of them here yet."""

    @property
    def files(self) -> frozenset[str]:
        """What there is, as POSIX paths inside the checkpoint; offline: what is cached."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit, where the files come from a hub."""
        ...

    @property
    def refusal(self) -> str | None:
        """What the hub said where it refused this token the model, though it may be cached."""
        ...

    def fetch(self, patterns: Sequence[str]) -> Path:
        """A local folder that holds the files matching *patterns*; no others are asked for.

        Raises ModelError where a link in it leads out of it.
        """
        ...


def open_model(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
) -> Source:
    """The files behind *model*: a folder if there is one of that name, else a hub id.

    Raises ModelError naming *model* where neither is found or the hub cannot be reached and the
    cache lacks it.
    """
    try:
        folder = Path(model).expanduser()
    except RuntimeError:  # no such user
        folder = Path(model)
    if folder.is_dir():
        return LocalFolder(folder)
    if folder.is_file() or folder.is_absolute() or model.startswith((".", "~")):
        raise ModelError(f"model must be a folder or a hub id: no folder at {model!r}")
    return HubModel(model, revision, token, cache_folder, local_files_only)


@dataclass(frozen=True)
class LocalFolder:
    """A checkpoint in a folder of one's own."""

    folder: Path
    revision: str | None = None
    refusal: str | None = None

    @property
    def files(self) -> frozenset[str]:
        """Everything in the folder."""
        return _listing(self.folder)

    def fetch(self, patterns: Sequence[str]) -> Path:
        """The folder itself; ModelError where a link in it leads out of it."""
        del patterns  # everything there is, is here
        check_links(self.folder)
        return self.folder


@dataclass
class HubModel:
    """A checkpoint on a hub, through huggingface_hub's cache.

    Network use follows huggingface_hub: HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT and its token store.
    """

    model: str
    asked_revision: str | None
    token: str | None = field(repr=False)
    cache_folder: str | None
    local_files_only: bool
    revision: str | None = None
    refusal: str | None = None
    files: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        folder = self.fetch(CONFIG_FILES)
        self.revision = folder.name
        self.files = _listing(folder) | self._remote_files()

    def fetch(self, patterns: Sequence[str]) -> Path:
        """The snapshot folder; the files matching *patterns* are downloaded or in the cache."""
        from huggingface_hub import snapshot_download  # lazy: a local folder needs no hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            folder = snapshot_download(
                self.model,
                revision=self.revision or self.asked_revision,
                cache_dir=self.cache_folder,
                token=self.token,
                local_files_only=self.local_files_only,
                allow_patterns=list(patterns),
            )
        except (HfHubHTTPError, HFValidationError, OSError, ValueError, RuntimeError) as error:
            # What it quotes of a header or an address may be a secret, so it is told, not chained.
            refusal = self._refusal(error)
        else:
            check_links(Path(folder))
            return Path(folder)
        raise refusal

    def _remote_files(self) -> frozenset[str]:
        from huggingface_hub import HfApi, constants

        if self.local_files_only or constants.HF_HUB_OFFLINE:
            return frozenset()
        try:  # `list_repo_files` would try a dead hub six times, for half a minute
            info = HfApi(token=self.token).model_info(self.model, revision=self.revision)
        except Exception as error:  # noqa: BLE001  # the HTTP client's classes differ by version
            # The cache answered though the hub did not: what is cached is what there is.
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (401, 403, 404):
                self.refusal = f"HTTP {status}"
            return frozenset()
        return frozenset(sibling.rfilename for sibling in info.siblings or ())

    def _refusal(self, error: Exception) -> RerankError:
        if getattr(error, "errno", None) in UNWRITABLE:
            return ConfigError(
                "cache_folder must be a folder that can be written: got "
                f"{self.cache_folder!r} ({error}); pass cache_folder= another, set HF_HOME to one, "
                "or make room on the disk"
            )
        return ModelError(self._missing(error))

    def _missing(self, error: Exception) -> str:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if self.token:
            reason = reason.replace(self.token, "***")
        return (
            f"model {self.model!r} is no local folder and could not be had from the hub "
            f"({reason}): "
            "check the name, pass token= for a private or gated model, go online once, or use "
            'model="default", which needs no network'
        )


def matching(files: frozenset[str], patterns: Sequence[str]) -> list[str]:
    """The *files* that match any of *patterns*, sorted."""
    return sorted(
        name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    )


def _listing(folder: Path) -> frozenset[str]:
    return frozenset(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def cached_models() -> list[str]:
    """Hub ids in huggingface_hub's cache whose config.json names a classifier or a causal model."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return sorted(
        repository.repo_id
        for repository in repositories
        if repository.repo_type == "model" and any(map(_scores_pairs, repository.revisions))
    )


def _scores_pairs(revision: CachedRevisionInfo) -> bool:
    config = revision.snapshot_path / "config.json"
    if not config.is_file():
        return False
    names = ("ForSequenceClassification", "ForCausalLM")
    return any(name in config.read_text(encoding="utf-8") for name in names)
