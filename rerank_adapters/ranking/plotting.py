"""Rank changes and calibration as pictures. They need `pip install 'rerank-adapters[plot]'`."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence

from ..calibration import Reliability
from ..clean import one_line
from ..errors import InputError, MissingDependencyError
from . import RankedDocument, Ranking

try:
    from matplotlib import font_manager, rcParams
    from matplotlib import pyplot as plt
except ImportError as error:
    raise MissingDependencyError("matplotlib", "plot") from error

from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

ROSE, FELL, STAYED = "#0072b2", "#d55e00", "#999999"
"""Distinct for every kind of colour vision (Okabe & Ito, 2008)."""

LABEL = 34
"""Terminal cells of a label's text."""

NO_GLYPH = "\u25af"
"""Stands for a letter that no installed font has."""

__all__ = ["plot_rank_changes", "plot_reliability"]


def plot_rank_changes(
    ranking: Ranking,
    texts: Sequence[str] | None = None,
    *,
    scores_before: Sequence[float] | None = None,
    top_n: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw where each document stood when it was given and where the ranking put it.

    One line per document of *ranking*, or of its first *top_n*: from (0, its rank among the
    texts given) to (1, its rank), both from 1, best on top. Blue rose, orange fell, grey stayed.
    Labels hold the rank, the score (left: *scores_before*, the retriever's own, one per text
    given; right: the ranking's) and the document's text, or its index where *texts* are None.
    Letters that matplotlib's font lacks are drawn in another installed one. Draws into *ax*, or
    into a new pyplot figure, and returns the axes. Raises InputError.
    """
    documents = _checked(ranking, texts, scores_before, top_n)
    lowest = max(max(document.index + 1 for document in documents), len(documents))
    if ax is None:
        size = (10, min(max(0.32 * lowest + 0.8, 2), 14))
        _, ax = plt.subplots(figsize=size, layout="constrained")  # leaves room for the labels
    names = [_name(document, texts) for document in documents]
    families, missing = _families(frozenset("".join(names)))
    table = dict.fromkeys(map(ord, missing), NO_GLYPH)
    with plt.rc_context({"font.family": families}):
        for rank, (document, name) in enumerate(zip(documents, names, strict=True), 1):
            _draw(ax, document, rank, name.translate(table), scores_before)
    ax.set(xlim=(0, 1), ylim=(lowest + 0.5, 0.5), xticks=(0, 1), yticks=())
    ax.set_xticklabels(["before", "after"])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def plot_reliability(
    before: Reliability, after: Reliability | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the share of relevant pairs against their mean score, with 95 % intervals, bin by bin.

    *before* in orange, *after*, of calibrated scores perhaps, in blue; a calibrated scorer's points
    stand on the grey diagonal. The legend has each one's expected calibration error. Draws into
    *ax*, or into a new pyplot figure, and returns the axes. Raises InputError.
    """
    drawn = {"before": before} if after is None else {"before": before, "after": after}
    for name, found in drawn.items():
        if not isinstance(found, Reliability):
            raise InputError(f"{name} must be a Reliability: got {type(found).__name__}")
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 5), layout="constrained")
    ax.plot((0, 1), (0, 1), color=STAYED, linewidth=1)
    for (name, found), colour, shape in zip(drawn.items(), (FELL, ROSE), "so", strict=False):
        shares = [it.share for it in found.bins]
        bounds = [it.interval for it in found.bins]
        spread = (
            [share - low for share, (low, _) in zip(shares, bounds, strict=True)],
            [high - share for share, (_, high) in zip(shares, bounds, strict=True)],
        )
        label = f"{name}: error {found.expected_calibration_error:.3f}"
        means = [it.score for it in found.bins]
        ax.errorbar(means, shares, spread, color=colour, marker=shape, capsize=3, label=label)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean score", ylabel="share relevant", aspect="equal")
    ax.legend(frameon=False)
    return ax


def _name(document: RankedDocument, texts: Sequence[str] | None) -> str:
    return f"[{document.index}]" if texts is None else one_line(texts[document.index], LABEL)


def _families(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Fonts that together draw *letters*, matplotlib's own first, and the letters none has."""
    families, missing = list(rcParams["font.family"]), letters - {" "}
    own = font_manager.findfont(font_manager.FontProperties(family=families))
    missing -= _letters(own)
    for font in font_manager.fontManager.ttflist if missing else ():
        plain = font.style == "normal" and "Last Resort" not in font.name
        if plain and font.name not in families and missing & _letters(font.fname):
            families.append(font.name)
            missing -= _letters(font.fname)
    if missing:
        logger.warning(
            "no installed font has %s: install one that does, such as Noto Sans CJK",
            one_line("".join(sorted(missing)), LABEL),
        )
    return families, missing


@functools.lru_cache(maxsize=512)
def _letters(file: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(file).get_charmap()))


def _draw(
    ax: Axes,
    document: RankedDocument,
    rank: int,
    name: str,
    scores_before: Sequence[float] | None,
) -> None:
    before = document.index + 1
    colour = STAYED if before == rank else ROSE if rank < before else FELL
    ax.plot((0, 1), (before, rank), color=colour, marker="o", linewidth=2, clip_on=False)
    old = "" if scores_before is None else f"{scores_before[document.index]:.3f}  "
    # parse_math: a text's "$" is money, not mathematics
    ax.annotate(
        f"{name}  {old}{before}",
        (0, before),
        (-8, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        parse_math=False,
        annotation_clip=False,
    )
    ax.annotate(
        f"{rank}  {document.score:.3f}  {name}",
        (1, rank),
        (8, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        parse_math=False,
        annotation_clip=False,
    )


def _checked(
    ranking: Ranking,
    texts: Sequence[str] | None,
    scores_before: Sequence[float] | None,
    top_n: int | None,
) -> Ranking:
    if not isinstance(ranking, Ranking):
        raise InputError(f"ranking must be a Ranking: got {type(ranking).__name__}")
    if top_n is not None and top_n < 1:
        raise InputError(f"top_n must be at least 1: got {top_n}")
    if not ranking:
        raise InputError("ranking must hold a document: got none")
    documents = ranking[:top_n]
    documents.show(texts)  # checks the texts
    last = max(document.index for document in documents)
    if scores_before is not None and last >= len(scores_before):
        raise InputError(
            f"scores_before must have a score of every text ranked, also of texts[{last}]: "
            f"got {len(scores_before)}"
        )
    if not all(math.isfinite(score) for score in scores_before or ()):
        raise InputError("scores_before must be finite")
    return documents
