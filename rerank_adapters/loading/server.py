"""The chain of scorers over a server."""

from __future__ import annotations

from ..config import RerankerConfig
from ..protocols import Scorer
from ..remote import RemoteConfig
from ..scorers.cached import Cached
from ..scorers.calibrated import Calibrated
from ..scorers.distinct import Distinct
from .identity import check_weights


def over_server(config: RerankerConfig, remote: RemoteConfig) -> Scorer:
    """Calibrated → distinct → cached → the server. MissingDependencyError where httpx is absent.

    Whose weights a server has is known by its model's name, or its address.
    """
    from ..scorers.remote import Remote  # lazy: an extra brings its httpx

    name = remote.model or remote.url
    check_weights(config.calibration, lambda: (f"server:{name}",), name)
    scorer: Scorer = Remote(remote, activation=config.activation)
    if config.cache is not None:
        facts = (remote.url, remote.dialect, remote.model, config.activation)
        scorer = Cached(scorer, config.cache, repr(facts).encode())
    return Calibrated(Distinct(scorer), config.calibration, lambda: (f"server:{name}",))
