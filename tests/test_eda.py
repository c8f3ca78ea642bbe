"""Pictures and tables of digits: what the chapter cannot show, and what it must refuse."""

import importlib.util
import itertools
import re
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from files import error_message
from matplotlib.colors import to_rgb
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from digitrec import eda
from digitrec.data import DataError, Digits
from digitrec.eda import (
    PALETTE,
    class_frequencies,
    fastest_estimator,
    fit_pca,
    n_components_for,
    neighbour_accuracy,
    overview,
    plot_class_frequencies,
    plot_embedding,
    reconstruct,
    samples,
    show,
    tsne,
    two_sample_auc,
    wilson_interval,
)
from digitrec.sources import load

TRAIN, TEST = load("digits")
RNG = np.random.default_rng(0)
# Linear RGB in three kinds of colour blindness: Machado, Oliveira, Fernandes, 2009, table 1.
BLINDNESS = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def linear(colours):
    "Linear RGB, 0 to 1."
    rgb = np.array([to_rgb(colour) for colour in colours])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast_on_white(colours):
    "WCAG 2's contrast ratio."
    return 1.05 / (linear(colours) @ [0.2126, 0.7152, 0.0722] + 0.05)


def closest(colours, seen=None):
    "The least distance between two colours in Oklab (B. Ottosson, 2020), as seen by a kind of eye."
    rgb = (
        linear(colours)
        if seen is None
        else (linear(colours) @ np.transpose(BLINDNESS[seen])).clip(0, 1)
    )
    cones = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.2119035, 0.68069955, 0.10739696],
        [0.08830246, 0.28171884, 0.6299787],
    ]
    axes = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.9779985, -2.42859221, 0.45059371],
        [0.02590404, 0.78277177, -0.80867577],
    ]
    oklab = np.cbrt(rgb @ np.transpose(cones)) @ np.transpose(axes)
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(oklab, 2))


def test_every_colour_is_dark_enough_on_white():
    assert len(set(PALETTE)) == 10
    assert contrast_on_white(PALETTE).min() >= 3
    assert contrast_on_white(["#88CCEE", "#DDCC77"]).max() < 2  # the first edition's


@pytest.mark.parametrize("seen", [None, *BLINDNESS])
def test_colours_stay_apart_for_every_kind_of_eye(seen):
    muted = [
        "#332288",
        "#88CCEE",
        "#44AA99",
        "#117733",
        "#999933",
        "#DDCC77",
        "#CC6677",
        "#882255",
        "#AA4499",
        "#777777",
    ]
    assert closest(PALETTE, seen) > 0.09
    assert closest(muted, "protan") < 0.01  # the first edition's: what this test must notice


def test_every_picture_has_a_hairline_frame():
    fig = show(np.zeros((3, 5, 5)), columns=2)
    framed = [ax for ax in fig.axes if ax.axison]
    assert len(fig.axes) == 4 and len(framed) == 3
    for ax in framed:
        assert all(
            spine.get_visible() and 0 < spine.get_linewidth() < 1 for spine in ax.spines.values()
        )
        assert list(ax.get_xticks()) == list(ax.get_yticks()) == []


def test_show_passes_one_scale_to_all_and_says_when_there_is_nothing():
    fig = show([np.zeros((2, 2)), np.full((2, 2), 9)], ["a", "b"], vmin=0, vmax=255)
    assert {ax.images[0].get_clim() for ax in fig.axes[:2]} == {(0, 255)}
    assert [ax.get_title() for ax in fig.axes[:2]] == ["a", "b"]
    assert show(np.zeros((0, 28, 28))).get_suptitle() == "nothing to show"


def test_samples():
    chosen = samples(TRAIN, 3, seed=1)
    assert chosen.labels.tolist() == list(range(10)) * 3
    assert len(np.unique(chosen.images.reshape(30, -1), axis=0)) == 30
    assert not np.array_equal(chosen.images, samples(TRAIN, 3, seed=2).images)
    assert "at least 100000 of each class" in error_message(samples, TRAIN, 100_000)
    assert "no labels" in error_message(samples, Digits(TRAIN.images))
    with pytest.raises(ValueError, match="each = 0") as caught:
        samples(TRAIN, 0)
    assert not isinstance(caught.value, DataError)  # a setting, not data


def test_overview_counts():
    images = np.zeros((3, 28, 28), np.uint8)
    images[2, 0, 0] = 7
    column = overview(Digits(images, None, "three"))["three"]
    assert column["exact duplicates"] == 1 and column["pixels always empty"] == 783
    assert (
        column["unique pixel values"] == 2
        and column["labelled"] == "no"
        and column["classes"] == ""
    )
    with pytest.raises(DataError, match="no digits"):
        overview(TRAIN[:0])


def test_sets_of_the_same_name_stay_apart():
    halves = TRAIN[:5], TRAIN[5:]
    table = overview(*halves)
    assert list(map(int, table.loc["digits"])) == [5, len(TRAIN) - 5]
    shares = class_frequencies(*halves).groupby("part")["share"].sum()
    assert len(shares) == 2 and np.allclose(shares, 1)


@pytest.mark.parametrize("count,n", [(0, 1), (1, 1), (0, 50), (37, 40), (9_960, 10_000)])
def test_wilsons_interval_is_the_formula(count, n):
    z, p = 1.959963984540054, count / n
    middle, half = p + z**2 / 2 / n, z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    expected = np.array([middle - half, middle + half]) / (1 + z**2 / n)
    assert np.allclose(wilson_interval(count, n), expected, atol=1e-9)
    assert np.allclose(
        wilson_interval(count, n), binomtest(count, n).proportion_ci(method="wilson")
    )


def test_class_frequencies():
    part = Digits(np.zeros((8, 28, 28), np.uint8), [1, 1, 1, 4, 4, 9, 9, 9], "eight")
    table = class_frequencies(part, TRAIN)
    eight = table[table["part"] == "eight"].set_index("digit")
    assert eight["count"].tolist() == [0, 3, 0, 0, 2, 0, 0, 0, 0, 3]
    assert eight.loc[4, "share"] == 0.25 and (eight["low"] <= eight["share"]).all()
    assert tuple(eight.loc[4, ["low", "high"]]) == wilson_interval(2, 8)
    for bad, found in [(Digits(TRAIN.images), "no labels"), (TRAIN[:0], "no digits")]:
        with pytest.raises(DataError, match=found):
            class_frequencies(bad)
    ax = plot_class_frequencies(table)
    bars = [bar for container in ax.containers for bar in getattr(container, "patches", [])]
    assert sorted(bar.get_height() for bar in bars) == sorted(table["share"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["eight", TRAIN.name]


def test_auc_is_scikit_learns_and_its_interval_a_bootstraps():
    second = RNG.random(600) < 0.4
    scores = RNG.normal(size=600).round(1) + 0.5 * second  # with ties
    auc, low, high = eda._auc_interval(scores, second, np.arange(600))
    assert auc == pytest.approx(roc_auc_score(second, scores)) == pytest.approx((low + high) / 2)
    draws = RNG.integers(600, size=(500, 600))
    sd = np.std([roc_auc_score(second[draw], scores[draw]) for draw in draws])
    assert (high - low) / 3.92 == pytest.approx(sd, rel=0.15)


def test_auc_interval_over_groups_is_wider_where_groups_agree():
    one = eda._auc_interval(
        *(scores := RNG.normal(size=200), second := np.arange(200) < 100), np.arange(200)
    )
    copies = [np.repeat(values, 9) for values in (scores, second, np.arange(200))]
    nine = eda._auc_interval(*copies)
    assert nine == pytest.approx(one)  # nine copies of each digit tell no more than one
    alone = eda._auc_interval(copies[0], copies[1], np.arange(1800))
    assert alone[2] - alone[1] == pytest.approx((one[2] - one[1]) / 3, rel=0.05)


def test_two_samples_are_told_apart_where_they_differ_and_only_there():
    darker = Digits((TRAIN.images // 2).astype(np.uint8))
    assert two_sample_auc(TRAIN, darker)[1] > 0.95
    first = np.random.default_rng(0).random(len(TRAIN)) < 0.5
    auc, low, high = two_sample_auc(TRAIN[first], TRAIN[~first])
    assert low < 0.5 < high and 0 <= low < auc < high <= 1


def test_two_samples_with_writers_keep_writers_whole(monkeypatch):
    seen = {}

    def scores(fit, held, seed):
        seen["both"] = set(fit.writers.tolist()) & set(held.writers.tolist())
        return RNG.random(len(held))

    monkeypatch.setattr(eda, "_second_scores", scores)
    first, second = (
        Digits(part.images, None, "", first + np.arange(len(part)) // 30)
        for part, first in ((TRAIN, 0), (TEST, 100))
    )
    two_sample_auc(first, second)
    assert seen == {"both": set()}


def test_components():
    pca = fit_pca(TRAIN)
    held = pca.explained_variance_ratio_.cumsum()
    for share in (0.3, 0.95, 1):
        count = n_components_for(pca, share)
        assert held[count - 1] >= share - 1e-6 and (count == 1 or held[count - 2] < share)
    for share in (0, -1, 95, np.nan):
        assert f"share = {share}" in error_message(n_components_for, pca, share)
    few = fit_pca(TRAIN[:50])
    assert len(few.components_) == 50 and n_components_for(few, 1) <= 50
    pca.explained_variance_ratio_ = pca.explained_variance_ratio_[:5]
    assert "all 5 components hold" in error_message(n_components_for, pca)


def test_reconstruct():
    pca = fit_pca(TRAIN)
    errors = [
        abs(reconstruct(pca, TEST.images, count) * 255 - TEST.images).mean()
        for count in (1, 10, 100)
    ]
    assert errors[0] > errors[1] > errors[2]
    for count in (0, 785):
        assert f"count = {count}; expected 1 to 784" in error_message(
            reconstruct, pca, TEST.images, count
        )


def test_numerals_never_overlap():
    twins = np.zeros((10, 2))
    line = np.column_stack([np.linspace(0, 1, 10), np.zeros(10)])
    for points in (twins, line, RNG.normal(size=(10, 2))):
        moved = eda._spread_apart(points, 1)
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(moved, 2)) > 0.99
    far = 5 * line + [[0, 0]] * 10
    assert np.allclose(eda._spread_apart(far, 0.5), far, atol=1e-5)  # what is apart stays


def test_numerals_in_a_drawn_map_do_not_overlap():
    points, labels = RNG.normal(size=(500, 2)), np.arange(500) % 10  # all medians near 0
    ax = plot_embedding(points, labels)
    ax.figure.canvas.draw()
    circles = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == list("0123456789")
    centres = np.array([[(c.x0 + c.x1) / 2, (c.y0 + c.y1) / 2] for c in circles])
    width = max(c.width for c in circles)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(centres, 2)) > 0.9 * width


def test_tsne_parts_clusters_and_refuses():
    points = np.concatenate([RNG.normal(at, 0.1, (40, 5)) for at in (0, 10)]).astype(np.float32)
    places = tsne(points, perplexity=10)
    assert neighbour_accuracy(places, np.repeat([0, 1], 40), 5) == 1
    assert "perplexity = 50 for 40 points" in error_message(tsne, points[:40])
    points[3, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        tsne(points, perplexity=10)


def test_neighbours_leave_a_point_itself_out():
    places = np.array([[0.0], [1.0], [10.0], [11.0]])
    assert neighbour_accuracy(places, np.array([0, 1, 0, 1]), 1) == 0
    for k in (0, 4):
        assert f"k = {k} among 4 points; expected 1 to 3" in error_message(
            neighbour_accuracy, places, np.arange(4), k
        )


def test_the_fastest_estimator_is_intels_where_installed(monkeypatch):
    fast = importlib.util.find_spec("sklearnex") is not None
    assert fastest_estimator("manifold.TSNE").__module__.startswith(
        ("sklearnex.", "daal4py.") if fast else "sklearn."
    )
    monkeypatch.setitem(sys.modules, "sklearnex", None)
    monkeypatch.setitem(sys.modules, "sklearnex.manifold", None)
    assert fastest_estimator("manifold.TSNE").__module__.startswith("sklearn.")


def test_no_table_needs_jinja2():
    from pathlib import Path

    for chapter in ("01_eda", "02_scores"):
        source = (Path(__file__).parent.parent / f"nbs/{chapter}.ipynb").read_text(encoding="utf-8")
        assert not re.search(r"\.style\b|formats\.style", source), chapter


def test_scipy_and_scikit_learn_wait_until_they_are_needed():
    code = ("import sys, digitrec.scores; "
            "assert not {'sklearn', 'scipy', 'seaborn'} & set(sys.modules), 'early'")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_sets_need_digits_of_both_in_both_halves():
    parts = [Digits(part.images[:40], part.labels[:40], "few", np.arange(40) // 40 + i)
             for i, part in enumerate((TRAIN, TEST))]
    with pytest.raises(DataError, match="a half of one set only"):
        two_sample_auc(*parts)
    auc, low, high = two_sample_auc(TRAIN[:40], TEST[:40])
    assert 0 <= low <= auc <= high <= 1


@pytest.mark.parametrize("images, count, found", [
    (TRAIN.images[:9] / 255, 5, "uint8"), (TRAIN.images[:9], 1.5, "count = 1.5")])
def test_other_images_and_counts_are_not_reconstructed(images, count, found):
    pca = fit_pca(TRAIN[:50])
    assert found in error_message(reconstruct, pca, images, count)
    rows = reconstruct(pca, TRAIN.images[:9].reshape(9, 784), 5)
    assert np.array_equal(rows, reconstruct(pca, TRAIN.images[:9], 5))
