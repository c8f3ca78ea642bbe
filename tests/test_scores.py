"""Scores against scikit-learn, formulas and simulation; what they refuse and pass on."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from files import error_message
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.metrics import brier_score_loss, classification_report, confusion_matrix, log_loss
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from digitrec.data import DataError, Digits, flatten
from digitrec.eda import wilson_interval
from digitrec.scores import (
    Accuracy,
    Comparison,
    CrossValidation,
    accuracy,
    brier,
    check_probabilities,
    compare,
    confusion,
    cross_validate,
    ece,
    nll,
    plot_confusion,
    plot_reliability,
    predict_probabilities,
    reliability,
    report,
    score,
)
from digitrec.sources import load

TRAIN, TEST = load("digits")
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 10, 2_000)
PROBABILITIES = RNG.dirichlet(np.ones(10) / 2, 2_000)
PREDICTED = PROBABILITIES.argmax(axis=1)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def confident(confidence, correct):
    "Labels 0 or 1, and probabilities of 0; bins of (confidence, correct, wrong)."
    labels = np.concatenate([np.repeat([0, 1], pair) for pair in correct])
    sure = np.repeat(confidence, [sum(pair) for pair in correct])
    probabilities = np.repeat((1 - sure[:, None]) / 9, 10, axis=1)
    probabilities[:, 0] = sure
    return labels, probabilities


def test_accuracy_as_text():
    assert str(Accuracy(875, 899)) == "0.9733 (95 % interval 0.9606 to 0.9820), 24 errors of 899"
    assert str(Accuracy(41_120, 42_000)).endswith("880 errors of 42,000")
    assert "95 % interval over writers 0.9000 to 0.9500" in str(Accuracy(92, 100, (0.9, 0.95)))
    assert str(Accuracy(9, 10)).endswith(", 1 error of 10")
    assert Accuracy(875, 899).interval == wilson_interval(875, 899)


def test_accuracy_over_writers_covers_what_digits_do_not():
    "Writers of different skill: the bootstrap's intervals hold the truth, Wilson's are too narrow."
    rng, hits = np.random.default_rng(1), {"digits": 0, "writers": 0}
    writers = np.repeat(np.arange(60), 25)
    for _ in range(100):
        skill = rng.beta(9, 1, 60)  # the mean is .9
        correct = (rng.random(1500) < skill[writers]).astype(int)
        for name, groups in (("digits", None), ("writers", writers)):
            low, high = accuracy(np.ones(1500, int), correct, groups).interval
            hits[name] += low <= 0.9 <= high
    assert hits["writers"] >= 86 and hits["digits"] <= 75


def test_the_bootstrap_over_writers_of_one_digit_each_is_wilsons_and_seeded():
    predicted = (RNG.random(3_000) < 0.8).astype(int)
    of_one = accuracy(np.ones(3_000, int), predicted, np.arange(3_000))
    assert np.allclose(
        of_one.interval, accuracy(np.ones(3_000, int), predicted).interval, atol=2e-3
    )
    assert of_one == accuracy(np.ones(3_000, int), predicted, np.arange(3_000))
    assert of_one != accuracy(np.ones(3_000, int), predicted, np.arange(3_000), seed=1)


def test_the_bootstrap_draws_writers_of_unequal_size():
    "One writer of 1,000 digits and 50 of one: the standard error is that of a ratio of sums."
    groups = np.r_[np.zeros(1000, int), np.arange(1, 51)]
    predicted = np.r_[np.ones(1000, int), np.zeros(50, int)]
    low, high = accuracy(np.ones(1050, int), predicted, groups).interval
    assert low == 0 and high > 0.97  # the large writer may not be drawn, or drawn thrice


def test_without_errors_the_interval_counts_writers():
    ones = np.ones(100, int)
    assert accuracy(ones, ones, np.arange(100) // 10).interval == wilson_interval(10, 10)
    assert accuracy(ones, 0 * ones, np.arange(100) // 10).interval == wilson_interval(0, 10)


@pytest.mark.parametrize(
    "labels,predicted,groups,found",
    [
        ([], [], None, "labels: found none"),
        ([1, 2], [1.0, 2.0], None, "float64"),
        ([1, 2], [1], None, "shape (1,)"),
        ([1, 10], [1, 1], None, "found 10"),
        ([1, -1], [1, 1], None, "found -1"),
        ([[1]], [[1]], None, "shape (1, 1)"),
        ([1, 2], [1, 2], [3], "groups: found int64 of shape (1,)"),
        ([1, 2], [1, 2], [3, 3], "groups: found 1 group"),
        ([1, 2], [1, 2], ["a", "b"], "groups: found"),
    ],
)
def test_accuracy_refuses(labels, predicted, groups, found):
    with pytest.raises(DataError) as caught:
        accuracy(labels, predicted, groups)
    assert found in str(caught.value)


def test_confusion_and_report_are_scikit_learns():
    matrix = confusion(LABELS, PREDICTED)
    assert matrix.dtype == np.int64 and np.array_equal(matrix, confusion_matrix(LABELS, PREDICTED))
    theirs = classification_report(LABELS, PREDICTED, output_dict=True)
    ours = report(matrix)
    for digit in range(10):
        assert np.allclose(ours.loc[digit], list(theirs[str(digit)].values()))
    assert np.allclose(ours.loc["mean"], list(theirs["macro avg"].values()))


def test_a_class_that_does_not_occur():
    matrix = confusion([3, 3, 5], [3, 5, 5])
    assert matrix.shape == (10, 10) and matrix[3].tolist() == [0, 0, 0, 1, 0, 1, 0, 0, 0, 0]
    table = report(matrix)
    assert (
        np.isnan(table.loc[0, ["precision", "recall", "f1"]].astype(float)).all()
        and table.loc[0, "count"] == 0
    )
    assert (
        table.loc[3, "recall"] == 0.5
        and table.loc[3, "precision"] == 1
        and table.loc[5, "precision"] == 0.5
    )


def test_a_drawn_matrix_has_recall_at_the_right_and_precision_at_the_foot():
    matrix = np.array([[8, 2, 0], [1, 6, 3], [0, 0, 5]])
    ax = plot_confusion(matrix, "three", per=100)
    texts = np.array([text.get_text() for text in ax.texts]).reshape(4, 4)
    assert texts[0].tolist() == ["80", "20", "", "80.0%"]
    assert texts[3].tolist() == ["88.9%", "75.0%", "62.5%", "76.00%"]
    nearly = plot_confusion(np.array([[9999, 1], [0, 50]])).texts
    assert [nearly[i].get_text() for i in (2, 5)] == ["99.9%", "100%"]
    colours = ax.collections[0].get_array().reshape(4, 4)
    assert not np.diag(colours).any() and colours[1, 2] == 30
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted (per 100 of each digit)", "label")
    assert plot_confusion(np.zeros((3, 3), int)).texts[-1].get_text() == "0.00%"


def test_the_darkest_colour_is_the_largest_error_or_5():
    for errors, darkest in ((1, 5), (7, 7)):
        matrix = np.array([[90, errors], [0, 90]])
        assert plot_confusion(matrix).collections[0].get_clim() == (0, darkest)
        assert plot_confusion(matrix, darkest=3).collections[0].get_clim() == (0, 3)


def test_the_numbers_of_a_confusion_matrix_are_dark_on_every_colour():
    matrix = np.array([[90, 1, 3], [5, 90, 30], [60, 100, 2]])
    assert {text.get_color() for text in plot_confusion(matrix).texts} == {".15"}


@pytest.mark.parametrize(
    "probabilities,n,found",
    [
        ([[0.1] * 10, [0.2] * 10], 2, "row 1"),
        ([[np.nan] * 10], 1, "row 0"),
        ([[0.1] * 10], 2, "shape (1, 10)"),
        ([[0.5, 0.6, -0.1, 0, 0, 0, 0, 0, 0, 0]], 1, "row 0"),
        ([[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]], 1, "int64"),
    ],
)
def test_what_are_no_probabilities_is_refused(probabilities, n, found):
    assert found in error_message(check_probabilities, probabilities, n)


def test_nll_and_brier_are_scikit_learns():
    assert nll(LABELS, PROBABILITIES) == pytest.approx(log_loss(LABELS, PROBABILITIES))
    ours = brier_score_loss(LABELS, PROBABILITIES, scale_by_half=False, labels=range(10))
    assert brier(LABELS, PROBABILITIES) == pytest.approx(ours)
    assert nll([3], np.eye(10)[[5]]) == pytest.approx(-np.log(1e-15))


def test_ece_weighs_unequal_bins_by_their_digits():
    labels, probabilities = confident([0.75, 0.95], [(5, 5), (30, 0)])
    assert ece(labels, probabilities) == pytest.approx((10 * 0.25 + 30 * 0.05) / 40)
    assert ece(labels, probabilities) != pytest.approx((0.25 + 0.05) / 2)
    assert ece(labels, probabilities, bins=1) == pytest.approx(abs(35 / 40 - (7.5 + 28.5) / 40))


def test_ece_by_a_loop():
    confidence, correct = PROBABILITIES.max(axis=1), PREDICTED == LABELS
    total = 0
    for i in range(15):
        held = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        total += abs(confidence[held].sum() - correct[held].sum())
    assert ece(LABELS, PROBABILITIES) == pytest.approx(total / len(LABELS))


def test_bins_carry_wilsons_interval():
    table = reliability(*confident([0.75, 0.95], [(5, 5), (29, 1)]))
    assert table.index.tolist() == [12, 15] and table["count"].tolist() == [10, 30]
    assert tuple(table.loc[15, ["low", "high"]]) == wilson_interval(29, 30)
    assert table["confidence"].tolist() == pytest.approx([0.75, 0.95])


def test_reliability_plots_have_error_bars_and_hide_bins_of_fewer_than_20():
    labels, probabilities = confident([0.55, 0.75, 0.95], [(10, 10), (10, 9), (29, 1)])
    top, bottom = plot_reliability(labels, {"a net": probabilities}).axes
    [bars] = top.containers
    assert bars.lines[0].get_xdata() == pytest.approx([0.55, 0.95])  # 20 and 30; not the bin of 19
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    assert np.allclose(ends, [wilson_interval(10, 20), wilson_interval(29, 30)])
    assert f"ECE {ece(labels, probabilities):.4f}" in top.get_legend().get_texts()[-1].get_text()
    assert {19, 20, 30} <= set(bottom.lines[0].get_ydata())


def test_score():
    scores = score(LABELS, PROBABILITIES)
    assert scores["errors"] == (LABELS != PREDICTED).sum() and scores["n"] == 2_000
    assert (scores["low"], scores["high"]) == wilson_interval(2_000 - scores["errors"], 2_000)
    assert scores["ece"] == ece(LABELS, PROBABILITIES)
    by_writer = score(LABELS, PROBABILITIES, np.arange(2_000) // 50)
    assert (by_writer["low"], by_writer["high"]) == accuracy(
        LABELS, PREDICTED, np.arange(2_000) // 50
    ).interval


def test_compare():
    assert compare([1] * 8, [1] * 6 + [1, 2], [2] * 6 + [1, 2]) == Comparison(6, 0, 2 / 64)
    assert compare([1] * 4, [1, 1, 2, 2], [2, 2, 1, 1]).p_value == 1
    with pytest.raises(DataError):
        compare([1, 2], [1, 2], [1])


def test_a_small_p_is_printed_as_such():
    assert (
        str(Comparison(2_615, 1_117, 2e-136))
        == "only first correct: 2,615; only second: 1,117; p < .001"
    )
    assert repr(Comparison(6, 0, 2 / 64)).endswith("p = .031")
    assert repr(Comparison(1, 1, 1.0)).endswith("p = 1.000")


def test_probabilities_of_digits_that_were_not_trained_on_are_0():
    known = TRAIN[TRAIN.labels > 6]
    recogniser = make_pipeline(FunctionTransformer(flatten), DummyClassifier(strategy="prior"))
    probabilities = predict_probabilities(recogniser.fit(known.images, known.labels), TEST.images)
    assert not probabilities[:, :7].any() and np.allclose(probabilities.sum(axis=1), 1)
    assert predict_probabilities(recogniser, TEST.images[:0]).shape == (0, 10)
    with pytest.raises(DataError):
        predict_probabilities(recogniser, TEST.flat)


class Witness(ClassifierMixin, BaseEstimator):
    "A recogniser that notes what its fit was given."

    seen = []

    def fit(self, images, labels, groups=None):
        type(self).seen.append((images, groups))
        self.classes_ = np.arange(10)
        return self

    def predict_proba(self, images):
        return np.full((len(images), 10), 0.1)


class Plain(Witness):
    seen = []

    def fit(self, images, labels):
        return super().fit(images, labels)


def test_cross_validation_passes_writers_to_a_fit_that_takes_groups():
    digits = Digits(TRAIN.images, TRAIN.labels, "with writers", np.arange(len(TRAIN)) // 30)
    Witness.seen, Plain.seen = [], []
    cross_validate(Witness(), digits, k=3)
    assert len(Witness.seen) == 3
    writers = {
        image.tobytes(): writer for image, writer in zip(digits.images, digits.writers, strict=True)
    }
    for images, groups in Witness.seen:
        assert groups.tolist() == [writers[image.tobytes()] for image in images]
    cross_validate(Plain(), digits, k=3)
    assert [groups for _, groups in Plain.seen] == [None] * 3
    Witness.seen = []
    cross_validate(Witness(), TRAIN, k=2)  # no writers: no groups
    assert [groups for _, groups in Witness.seen] == [None] * 2


def test_cross_validation_keeps_writers_whole():
    digits = Digits(TRAIN.images, TRAIN.labels, "with writers", np.arange(len(TRAIN)) // 30)
    Witness.seen = []
    cross_validate(Witness(), digits, k=3)
    left_out = [set(digits.writers.tolist()) - set(groups.tolist()) for _, groups in Witness.seen]
    assert sum(map(len, left_out)) == len(set(digits.writers.tolist())) == len(set.union(*left_out))


def test_cross_validation_scores_each_digit_out_of_fold():
    bayes = make_pipeline(FunctionTransformer(flatten), GaussianNB(var_smoothing=0.1))
    result = cross_validate(bayes, TRAIN, k=3, seed=4)
    correct = result.probabilities.argmax(axis=1) == TRAIN.labels
    assert np.trace(result.confusion) == correct.sum() and result.confusion.sum() == len(TRAIN)
    assert result.train_confusion.sum() == 2 * len(TRAIN)
    assert result.accuracies.mean() == pytest.approx(correct.mean(), abs=0.01)
    assert result.train_accuracies.mean() > result.accuracies.mean()
    assert result.seconds.shape == (3,) and (result.seconds > 0).all()
    in_pairs = cross_validate(bayes, TRAIN, k=3, seed=4, n_jobs=2)
    assert np.array_equal(in_pairs.probabilities, result.probabilities)
    assert not np.array_equal(
        cross_validate(bayes, TRAIN, k=3, seed=5).probabilities, result.probabilities
    )


def test_cross_validation_as_text():
    matrix = np.diag([4112] * 10)
    matrix[0, 1] = 880
    accuracies = np.array([0.977, 0.978, 0.979, 0.98, 0.981])
    text = str(CrossValidation(accuracies, accuracies, None, matrix, None, None))
    assert text == "0.9790 ± 0.0016 (sd over 5 folds), 880 errors of 42,000"
    text = str(CrossValidation(accuracies[:2], accuracies[:2], None, matrix, None, None))
    assert text == "0.9770 and 0.9780, 880 errors of 42,000"


@pytest.mark.parametrize("shape", [(5, 3), (5, 1), (4, 10), (5,)])
def test_predictions_of_another_shape_are_refused(shape):
    class Wrong(DummyClassifier):
        def predict_proba(self, images):
            return np.full(shape, 0.1)

    wrong = Wrong().fit(np.zeros((10, 1)), range(10))
    with pytest.raises(DataError, match=r"an array of shape .*expected \(5, 10\)"):
        predict_probabilities(wrong, TEST.images[:5])


@pytest.mark.parametrize("bins", [0, -3, 1.5, np.nan, "15"])
def test_bins_are_a_whole_number(bins):
    for function in (ece, reliability):
        with pytest.raises(ValueError, match="expected a whole number, 1 or more"):
            function(LABELS, PROBABILITIES, bins)


def test_rows_of_unequal_length_are_no_probabilities():
    with pytest.raises(DataError, match="rows of unequal length"):
        check_probabilities([[0.1] * 10, [0.1] * 9], 2)
    for labels in ([[1], [1, 2]], 5):
        with pytest.raises(DataError, match="expected whole numbers of shape"):
            accuracy(labels, labels)


@pytest.mark.parametrize("classes", [[-1, *range(9)], [30, *range(9)]])
def test_classes_that_are_no_digits_are_refused(classes):
    recogniser = DummyClassifier().fit(np.zeros((10, 1)), classes)
    with pytest.raises(DataError, match="classes_"):
        predict_probabilities(recogniser, TEST.images[:5])
