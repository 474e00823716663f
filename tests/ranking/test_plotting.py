"""plot_rank_changes: the drawn lines and labels, against a case worked by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import rerank_adapters
from rerank_adapters import (
    InputError,
    RankedDocument,
    Ranking,
    Reliability,
    plot_rank_changes,
    plot_reliability,
)
from rerank_adapters.ranking import plotting
from rerank_adapters.ranking.plotting import FELL, ROSE, STAYED

RANKING = Ranking([RankedDocument(2, 0.9), RankedDocument(1, 0.5), RankedDocument(0, 0.25)])
TEXTS = ["costs $5, not $6_x", "second\ntext", "third"]


@pytest.fixture(autouse=True)
def _without_a_window() -> Iterator[None]:
    """Draw to memory, and leave no figure open."""
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


def lines(ax: Axes) -> list[tuple[list[float], list[float], str]]:
    """(x, y, colour) of every line drawn."""
    return [(list(it.get_xdata()), list(it.get_ydata()), it.get_color()) for it in ax.lines]


def test_lines_go_from_the_place_given_to_the_rank() -> None:
    """Texts 3, 2, 1 end on ranks 1, 2, 3: one rises two places, one stays, one falls two."""
    ax = plot_rank_changes(RANKING)
    assert lines(ax) == [
        ([0, 1], [3, 1], ROSE),
        ([0, 1], [2, 2], STAYED),
        ([0, 1], [1, 3], FELL),
    ]
    low, high = ax.get_ylim()
    assert low > 3 > 1 > high, "the best is on top"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["before", "after"]


def test_labels_hold_place_score_and_text() -> None:
    """Left: text, the retriever's score, place; right: rank, score, text; on the lines' ends."""
    ax = plot_rank_changes(RANKING, TEXTS, scores_before=[7.5, 7.25, 1.0])
    labels = {(note.xy, note.get_text()) for note in ax.texts}
    assert labels == {
        ((0, 3), "third  1.000  3"),
        ((1, 1), "1  0.900  third"),
        ((0, 2), "second text  7.250  2"),
        ((1, 2), "2  0.500  second text"),
        ((0, 1), "costs $5, not $6_x  7.500  1"),
        ((1, 3), "3  0.250  costs $5, not $6_x"),
    }
    bare = {note.get_text() for note in plot_rank_changes(RANKING[:1]).texts}
    assert bare == {"[2]  3", "1  0.900  [2]"}


def test_the_picture_holds_every_label_and_leaves_money_alone() -> None:
    """Nothing is drawn outside the figure, and "$" starts no formula."""
    ax = plot_rank_changes(RANKING, [text * 9 for text in TEXTS], scores_before=[1, 2, 3])
    figure = ax.get_figure()
    figure.savefig(BytesIO())
    inside = figure.bbox.padded(1)
    for note in ax.texts:
        box = note.get_window_extent()
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
        assert not note.get_parse_math()


def test_top_n_draws_the_best_alone_at_their_places() -> None:
    """The line still starts where the document stood among all."""
    assert lines(plot_rank_changes(RANKING, top_n=1)) == [([0, 1], [3, 1], ROSE)]


def test_it_draws_into_axes_given() -> None:
    """No figure of its own is opened then."""
    _, ax = plt.subplots()
    count = len(plt.get_fignums())
    assert plot_rank_changes(RANKING, ax=ax) is ax
    assert len(ax.lines) == 3
    assert len(plt.get_fignums()) == count


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0, 1],), {}, "ranking must be a Ranking: got list"),
        ((Ranking([]),), {}, "ranking must hold a document: got none"),
        ((RANKING,), {"top_n": 0}, "top_n must be at least 1: got 0"),
        ((RANKING, ["a"]), {}, r"texts must be those that were ranked.*texts\[2\]"),
        ((RANKING,), {"scores_before": [1.0]}, r"scores_before must .*texts\[2\]: got 1"),
        ((RANKING,), {"scores_before": [1.0, float("nan"), 2.0]}, "scores_before must be finite"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_drawn(arguments, options, message) -> None:
    """InputError, and no empty figure left open."""
    with pytest.raises(InputError, match=message):
        plot_rank_changes(*arguments, **options)
    assert plt.get_fignums() == []


def test_without_matplotlib_the_error_names_the_extra() -> None:
    """Importing the package needs none; naming the function says how to get it."""
    code = """
import sys
sys.modules["matplotlib"] = None
import rerank_adapters
try:
    rerank_adapters.plot_rank_changes
except rerank_adapters.MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "`matplotlib` is not installed: pip install 'rerank-adapters[plot]'\n"


def test_it_is_loaded_when_named() -> None:
    """The package alone does not load matplotlib."""
    code = "import sys, rerank_adapters; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert rerank_adapters.plot_rank_changes is plot_rank_changes


def test_letters_that_the_font_lacks_are_drawn_in_another(caplog) -> None:
    """Cyrillic beside a font of Latin letters; letters that no font has are boxes, told once."""
    texts = ["Башня высокая", "\u6771\u4eac tower", "\u05d0\u05d1\u05d1\u05d1"]
    with mpl.rc_context({"font.family": ["cmr10"], "axes.formatter.use_mathtext": True}):
        ax = plot_rank_changes(RANKING, texts)
        families = {tuple(note.get_fontfamily()) for note in ax.texts}
        ax.figure.canvas.draw()  # matplotlib would warn of a missing glyph, and that is an error
    ((first, *others),) = families
    assert first == "cmr10"
    assert "DejaVu Sans" in others
    shown = " ".join(note.get_text() for note in ax.texts)
    assert "Башня высокая" in shown
    assert texts[2] in shown, "drawn right to left by matplotlib itself"
    fonts = plotting.font_manager.fontManager.ttflist
    able = [it.name for it in fonts if "\u6771" in plotting._letters(it.fname)]
    has = any("Last Resort" not in name for name in able)
    assert ("\u25af\u25af tower" in shown) != has
    assert ("no installed font has" in caplog.text) != has
    assert mpl.rcParams["font.family"] != families, "the setting is the caller's again"


def test_right_to_left_text_is_drawn_so() -> None:
    """Matplotlib 3.11 lays text out: the first letter of a Hebrew word stands on the right."""

    def drawn(text: str):
        figure = plt.figure(figsize=(3, 1), dpi=100)
        figure.text(0.1, 0.4, text, fontsize=20)
        figure.canvas.draw()
        dark = np.asarray(figure.canvas.buffer_rgba())[..., 0] < 128
        columns = np.where(dark.any(axis=0))[0]
        return dark[:, columns.min() : columns.max() + 1]

    alef, word = drawn("\u05d0"), drawn("\u05d0\u05d1\u05d1")
    width = alef.shape[1]
    assert np.array_equal(word[:, -width:], alef)
    assert not np.array_equal(word[:, :width], alef)


def test_a_reliability_diagram_draws_its_bins_and_errors() -> None:
    """Mean scores across, shares up, Wilson's bounds as bars, the errors in the legend."""
    before = Reliability.of([0.1, 0.3, 0.9], [0, 1, 1], bins=2)
    after = Reliability.of([0.2, 0.4, 0.6], [0, 1, 1], bins=2)
    ax = plot_reliability(before, after)
    points = [(x, y) for x, y, _ in lines(ax) if len(x) == 2]
    assert ((0, 1), (0, 1)) in [(tuple(x), tuple(y)) for x, y in points], "the diagonal"
    for found in (before, after):
        drawn = ([it.score for it in found.bins], [it.share for it in found.bins])
        assert drawn in points
    bars = [bar for container in ax.containers for bar in container[2][0].get_segments()]
    bounds = [it.interval for found in (before, after) for it in found.bins]
    np.testing.assert_allclose([(low[1], high[1]) for low, high in bars], bounds)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    errors = [it.expected_calibration_error for it in (before, after)]
    assert labels == [f"before: error {errors[0]:.3f}", f"after: error {errors[1]:.3f}"]
    _, own = plt.subplots()
    assert plot_reliability(before, ax=own) is own
    with pytest.raises(InputError, match="after must be a Reliability: got list"):
        plot_reliability(before, [after])
