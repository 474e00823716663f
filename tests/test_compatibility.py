"""The compatibility page says what the library does now."""

from __future__ import annotations

from rerank_adapters.loading.catalogue import KNOWN
from rerank_adapters.published import PUBLISHED
from tests.compatibility import PAGE, REFUSED, SCORED, TOLD, gaps_in, render


def test_the_page_is_what_the_library_says() -> None:
    """Frames, ids and refusals as they are; each gap that was measured within law 1."""
    page = PAGE.read_text("utf-8")
    gaps = gaps_in(page)
    assert page == render(gaps)
    assert all(float(gap) <= 1e-4 for pair in gaps.values() for gap in pair)
    assert all(name in page for name in [*KNOWN, *REFUSED])


def test_every_known_reranker_is_on_the_page() -> None:
    """By its id and once as scored; tokens and licence are what its publisher states."""
    page = PAGE.read_text("utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    named = {row[0].removeprefix("| "): row for row in rows}
    families = ("Xenova/", "BAAI/bge-reranker-v2-m3-int8")  # under another id, and by their owner
    for one in PUBLISHED:
        if one.id.startswith(families):
            continue
        cells = [cell.removesuffix(" |") for cell in named[one.id]]
        assert (one.licence or "") in cells
        assert not one.max_length or f"{one.max_length:,}" in cells
    scored = [name for row in SCORED for name in row.checkpoints]
    assert len(scored) == len(set(scored))
    assert len({*scored, *KNOWN, *(name for row in TOLD for name in row.checkpoints)}) >= 40
