"""Documents whose tokens are stored are not tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from ..document_tokens import Cut, DocumentTokens
from ..passages import Windows
from ..protocols import Call, Pair, Scored, Scorer
from ..tokenization import PairTokenizer
from . import Wrapper


class Stored(Wrapper):
    """Hands the stored tokens of documents on with them, found by `Call.keys` and text."""

    def __init__(
        self,
        inner: Scorer,
        tokens: DocumentTokens,
        tokenizer: PairTokenizer,
        windows: Windows | None = None,
    ) -> None:
        """Raises ConfigError where *tokens* are another tokenizer's."""
        super().__init__(inner)
        tokens.bind(tokenizer, None if windows is None else Cut(windows.tokens, windows.step))
        self.tokens = tokens
        self._tokenizer = tokenizer

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score *pairs*; documents without a key, or with none that is known, are read."""
        if call.keys is None:
            return self.inner.submit_pairs(pairs, call)
        found = self.tokens.get(call.keys, [str(document) for _, document in pairs])
        as_read = self._tokenizer.as_read(list(found))
        tokens = dict(zip(as_read, found.values(), strict=True))
        return self.inner.submit_pairs(
            pairs, replace(call, tokens={**(call.tokens or {}), **tokens})
        )
