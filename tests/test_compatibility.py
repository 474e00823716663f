"""The compatibility page says what the library does now."""

from __future__ import annotations

from rerank_adapters.loading.catalogue import KNOWN
from tests.compatibility import PAGE, REFUSED, gaps_in, render


def test_the_page_is_what_the_library_says() -> None:
    """Frames, ids and refusals as they are; each gap that was measured within law 1."""
    page = PAGE.read_text("utf-8")
    gaps = gaps_in(page)
    assert page == render(gaps)
    assert all(float(gap) <= 1e-4 for pair in gaps.values() for gap in pair)
    assert all(name in page for name in [*KNOWN, *REFUSED])
