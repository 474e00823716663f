"""Code that a checkpoint takes from another repository, under the checkpoint's own rules."""

from __future__ import annotations

from ..checkpoints import Checkpoint
from ..config import RerankerConfig
from ..errors import ModelError
from .hub import HubModel


def fetch_code(config: RerankerConfig, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Fetch what `auto_map` names in other repositories; return "owner/name@commit" of each.

    It comes into the cache, where transformers finds it without asking a hub, and with
    `local_files_only` from there alone. Raises ModelError where it cannot be had.
    """
    used = []
    for repository, files in sorted(checkpoint.code_elsewhere.items()):
        try:
            source = HubModel(
                repository, None, config.token, config.cache_folder, config.local_files_only
            )
            folder = source.fetch(["*.py"])
        except ModelError as error:
            raise ModelError(
                f"{checkpoint.folder} takes its code from another repository: {error}"
            ) from None
        missing = sorted(name for name in files if not (folder / name).is_file())
        if missing:
            raise ModelError(
                f"{checkpoint.folder} takes its code from {repository}, and {', '.join(missing)} "
                "is not there, or was never fetched: go online once"
            )
        used.append(f"{repository}@{source.revision}")
    return tuple(used)
