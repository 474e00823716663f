"""The chain of scorers over a server."""

from __future__ import annotations

from ..config import RerankerConfig
from ..protocols import Scorer
from ..remote import RemoteConfig
from ..scorers.cached import Cached
from ..scorers.distinct import Distinct


def over_server(config: RerankerConfig, remote: RemoteConfig) -> Scorer:
    """Distinct → cached → the server. MissingDependencyError where httpx is absent."""
    from ..scorers.remote import Remote  # lazy: an extra brings its httpx

    scorer: Scorer = Remote(remote, activation=config.activation)
    if config.cache is not None:
        facts = (remote.url, remote.dialect, remote.model, config.activation)
        scorer = Cached(scorer, config.cache, repr(facts).encode())
    return Distinct(scorer)
