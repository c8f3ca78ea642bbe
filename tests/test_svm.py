"""The SVM: scikit-learn's contract, the suite's contract, and probabilities that can be trusted."""

import pickle
import sys

import joblib
import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import digitrec.svm
from digitrec.data import DataError
from digitrec.scores import ece, nll, predict_probabilities
from digitrec.sources import load
from digitrec.svm import PUBLISHED_2021, SVM, TRUSTED_TYPES, Calibrated, ImagePipeline, deskew, svm

@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def fitted(digits):
    return svm().fit(digits[0].images, digits[0].labels)


def of_classes(digits, classes):
    return (part[np.isin(part.labels, list(classes))] for part in digits)


# The contracts


@parametrize_with_checks([SVM(), Calibrated(SVM()), Calibrated(LogisticRegression())])
def test_estimators_of_rows_pass_scikit_learns_checks(estimator, check):
    check(estimator)  # none is expected to fail


def test_the_recogniser_keeps_the_contract(digits, fitted):
    train, test = digits
    assert is_classifier(fitted)
    assert fitted.classes_.tolist() == list(range(10)) and fitted.n_features_in_ == 784
    probabilities = fitted.predict_proba(test.images)
    assert probabilities.shape == (len(test), 10) and np.allclose(probabilities.sum(axis=1), 1)
    assert (fitted.classes_[probabilities.argmax(axis=1)] == fitted.predict(test.images)).all()
    assert (fitted.predict(test.images) == test.labels).mean() >= 0.97
    again = clone(fitted).fit(train.images, train.labels)
    assert np.array_equal(again.predict_proba(test.images), probabilities)


def test_rows_are_images(digits, fitted):
    train, test = digits
    rows = svm().fit(train.images.reshape(-1, 784), train.labels)
    assert np.array_equal(
        rows.predict_proba(test.images.reshape(-1, 784)), fitted.predict_proba(test.images)
    )
    assert rows.n_features_in_ == 784


@pytest.mark.parametrize("shape", [(0, 28, 28), (0, 784)])
def test_no_images_get_no_predictions(fitted, shape):
    images = np.zeros(shape, np.uint8)
    assert fitted.predict_proba(images).shape == (0, 10)
    assert (
        fitted.predict(images).shape == (0,)
        and fitted.predict(images).dtype == fitted.classes_.dtype
    )


@pytest.mark.parametrize("recogniser", [svm(), svm(**PUBLISHED_2021)], ids=["ours", "published"])
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
@pytest.mark.parametrize("n", [0, 2])
def test_before_fit(recogniser, method, n):
    with pytest.raises(NotFittedError):
        getattr(recogniser, method)(np.zeros((n, 28, 28), np.uint8))
    assert not hasattr(recogniser, "n_features_in_") and not hasattr(recogniser, "classes_")


@pytest.mark.parametrize(
    "images", [np.zeros((2, 28, 28)), np.zeros((2, 783), np.uint8), np.zeros((28, 28), np.uint8)]
)
def test_images_of_another_form_are_refused(fitted, images):
    with pytest.raises(DataError, match="expected uint8 of shape"):
        fitted.predict(images)
    with pytest.raises(DataError, match="expected uint8 of shape"):
        svm().fit(images, [0, 1])


@pytest.mark.parametrize(
    "bad", [{"C": 0}, {"C": -1.0}, {"gamma": -0.1}, {"components": 0}, {"components": 999}]
)
def test_settings_out_of_range_are_refused(digits, bad):
    with pytest.raises(ValueError):
        svm(**bad).fit(digits[0].images, digits[0].labels)


def test_one_class_is_refused(digits):
    zeros = digits[0][digits[0].labels == 0]
    with pytest.raises(ValueError, match="class"):
        svm().fit(zeros.images, zeros.labels)


def test_the_published_settings():
    recogniser = svm(**PUBLISHED_2021)
    assert list(recogniser.named_steps) == ["flatten", "pca", "calibrated"]
    assert recogniser.get_params()["pca__n_components"] == 154
    machine = recogniser.get_params()["calibrated__estimator"]
    assert (machine.C, machine.gamma) == (1.0, 0.06)


@pytest.mark.parametrize("roundtrip", ["pickle", "joblib"])
def test_a_fitted_recogniser_survives(fitted, digits, tmp_path, roundtrip):
    if roundtrip == "pickle":
        again = pickle.loads(pickle.dumps(fitted))  # noqa: S301 (our own bytes)
    else:
        again = joblib.load(joblib.dump(fitted, tmp_path / "svm.joblib")[0])
    assert np.array_equal(
        again.predict_proba(digits[1].images), fitted.predict_proba(digits[1].images)
    )
    assert isinstance(again, ImagePipeline) and again.n_features_in_ == 784


def test_the_trusted_types_are_those_of_a_fitted_recogniser(fitted, digits):
    skops_io = pytest.importorskip("skops.io")
    data = skops_io.dumps(fitted)
    assert set(skops_io.get_untrusted_types(data=data)) == set(TRUSTED_TYPES)
    again = skops_io.loads(data, trusted=TRUSTED_TYPES)
    assert np.array_equal(
        again.predict_proba(digits[1].images), fitted.predict_proba(digits[1].images)
    )


def test_nested_settings_are_searched(digits):
    train, _ = digits
    grid = {
        "pca__n_components": [2, 40],
        "calibrated__estimator__gamma": [0.05],
        "calibrated__cv": [2],
    }
    search = GridSearchCV(svm(), grid, cv=2).fit(train.images, train.labels)
    assert search.best_params_["pca__n_components"] == 40
    best = search.best_estimator_.named_steps
    assert best["pca"].n_components_ == 40 and best["calibrated"].cv == 2
    assert cross_val_score(svm(), train.images, train.labels, cv=2).min() > 0.85


def test_changed_settings_take_effect_at_the_next_fit_only(digits):
    train, test = digits
    machine = SVM().fit(train.flat, train.labels)
    before = machine.decision_function(test.flat)
    assert np.array_equal(machine.set_params(gamma=1).decision_function(test.flat), before)
    assert not np.allclose(
        machine.fit(train.flat, train.labels).decision_function(test.flat), before
    )


# Writers


@pytest.fixture
def folds(monkeypatch):
    "Record which rows each fold of the temperature trains on and holds out."
    seen = []

    def record(splitter):
        split = splitter.split

        def recording(self, X, y=None, groups=None):
            for rest, held_out in split(self, X, y, groups):
                seen.append((type(self).__name__, rest, held_out, groups))
                yield rest, held_out

        monkeypatch.setattr(splitter, "split", recording)

    for splitter in (sklearn.model_selection.GroupKFold, sklearn.model_selection.StratifiedKFold):
        record(splitter)
    return seen


def test_a_writer_is_on_one_side_of_each_fold_of_the_temperature(digits, folds):
    train, _ = digits
    writers = np.arange(len(train)) // 60
    recogniser = svm().fit(train.images, train.labels, groups=writers)
    assert len(folds) == 3
    assert {"GroupKFold"} == {name for name, *_ in folds}
    for _, rest, held_out, _ in folds:
        assert not set(writers[rest]) & set(writers[held_out])
    alone = svm().fit(train.images, train.labels)
    temperatures = [r.named_steps["calibrated"].temperature_ for r in (recogniser, alone)]
    assert temperatures[0] != temperatures[1]
    assert (
        svm().fit(train.images, train.labels, writers).named_steps["calibrated"].temperature_
        == temperatures[0]
    )


def test_too_few_writers_are_refused(digits):
    train, _ = digits
    with pytest.raises(ValueError, match="groups"):
        svm().fit(train.images, train.labels, groups=np.arange(len(train)) % 2)


def test_metadata_routing_carries_the_writers(digits, folds):
    train, _ = digits
    writers = np.arange(len(train)) // 60
    with sklearn.config_context(enable_metadata_routing=True):
        GridSearchCV(
            svm(), {"calibrated__estimator__gamma": [0.05]}, cv=GroupKFold(2), refit=False
        ).fit(train.images, train.labels, groups=writers)
        svm().fit(train.images, train.labels, groups=writers)
    assert len(folds) == 2 + 2 * 3 + 3  # outer, inner of each outer one, and of the direct fit
    for name, rest, held_out, groups in folds:
        assert name == "GroupKFold" and not set(groups[rest]) & set(groups[held_out])


# Margins and predictions


def test_both_libraries_give_the_same_predictions(digits, monkeypatch):
    pytest.importorskip("sklearnex", reason="needs digitrec[fast]")
    train, test = digits
    fast = SVM().fit(train.flat, train.labels)
    monkeypatch.setitem(sys.modules, "sklearnex.svm", None)
    plain = SVM().fit(train.flat, train.labels)
    assert np.allclose(fast.margins(test.flat), plain.margins(test.flat), atol=0.01)
    assert (fast.predict(test.flat) == plain.predict(test.flat)).mean() > 0.998


@pytest.mark.parametrize("columns, chosen", [(74, "plain"), (75, "fastest")])
def test_the_library_is_chosen_by_the_length_of_the_rows(digits, monkeypatch, columns, chosen):
    asked = []

    def library(name):
        return lambda *args, **settings: asked.append(name) or SVC(*args, **settings)

    monkeypatch.setattr(digitrec.svm, "SVC", library("plain"))
    monkeypatch.setattr(digitrec.svm, "fastest_estimator", lambda name: library("fastest"))
    SVM().fit(digits[0].flat[:, 300 : 300 + columns], digits[0].labels)
    assert asked == [chosen]


@pytest.mark.parametrize("classes", [[3, 8], [1, 4, 7], range(10)])
def test_margins_are_those_of_scikit_learn(digits, classes):
    train, test = of_classes(digits, classes)
    ours = SVM().fit(train.flat, train.labels)
    theirs = SVC(C=5, gamma=0.05, decision_function_shape="ovo").fit(train.flat, train.labels)
    expected = theirs.decision_function(test.flat)
    expected = (
        -expected[:, None] if len(classes) == 2 else expected
    )  # scikit-learn's one margin is the second class's
    upper = np.triu_indices(len(classes), 1)
    assert np.allclose(ours.margins(test.flat)[:, *upper], expected, atol=0.01)
    won = np.abs(expected).min(axis=1) > 0.02
    if len(classes) < 10:
        assert (ours.predict(test.flat) == theirs.predict(test.flat))[won].mean() > 0.99


# Probabilities


@pytest.mark.parametrize("classes", [range(10), range(1, 10), [3, 8], [0, 1], [2, 5, 9]])
def test_confidence_is_sensible_whatever_classes_there_are(digits, classes):
    train, test = of_classes(digits, classes)
    probabilities = predict_probabilities(svm().fit(train.images, train.labels), test.images)
    others = [digit for digit in range(10) if digit not in classes]
    assert (probabilities[:, others] == 0).all() and np.allclose(probabilities.sum(axis=1), 1)
    accuracy = (probabilities.argmax(axis=1) == test.labels).mean()
    assert accuracy > 0.96
    assert abs(probabilities.max(axis=1).mean() - accuracy) < 0.03
    assert nll(test.labels, probabilities) < 0.13 and ece(test.labels, probabilities) < 0.03


@pytest.mark.parametrize(
    "labels", [np.array(list("abcdefghij")), np.array([-5, 0, 1, 2, 3, 30, 31, 32, 33, 100])]
)
def test_probabilities_do_not_depend_on_what_the_classes_are_called(digits, fitted, labels):
    train, test = digits
    named = svm().fit(train.images, labels[train.labels])
    assert np.array_equal(named.predict_proba(test.images), fitted.predict_proba(test.images))
    assert (named.predict(test.images) == labels[fitted.predict(test.images)]).all()


def test_an_unknown_class_gets_no_probability(digits):
    train, test = digits
    known = train[train.labels < 7]
    probabilities = predict_probabilities(svm().fit(known.images, known.labels), test.images)
    assert (probabilities[:, 7:] == 0).all() and np.allclose(probabilities.sum(axis=1), 1)


@pytest.fixture
def clusters():
    "A function: rows in one dimension, n of each of two classes, that overlap by so much."

    def make(n, overlap, seed=0):
        rng = np.random.default_rng(seed)
        y = np.arange(2 * n) % 2
        return (y - 0.5 + rng.normal(0, overlap, 2 * n))[:, None], y

    return make


def test_classes_that_are_separated_perfectly_leave_some_doubt(clusters):
    X, y = clusters(30, 0.01)
    probabilities = Calibrated(SVM()).fit(X, y).predict_proba(X)
    assert 0.95 < probabilities.max(axis=1).min() and probabilities.max() < 1 - 1e-6


def test_the_temperature_follows_the_noise(clusters):
    temperatures = [
        Calibrated(SVM()).fit(*clusters(300, overlap)).temperature_ for overlap in (0.1, 0.5, 2)
    ]
    assert temperatures == sorted(temperatures) and temperatures[-1] > 3 * temperatures[0]
    X, y = clusters(300, 0.5)
    new, truth = clusters(2000, 0.5, seed=1)
    probabilities = Calibrated(SVM()).fit(X, y).predict_proba(new)
    right = probabilities.argmax(axis=1) == truth
    assert abs(right.mean() - probabilities.max(axis=1).mean()) < 0.03


def test_a_temperature_changes_no_prediction(digits):
    train, test = digits
    plain, calibrated = (
        SVM().fit(train.flat, train.labels),
        Calibrated(SVM()).fit(train.flat, train.labels),
    )
    assert (plain.predict(test.flat) == calibrated.predict(test.flat)).all()


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_a_class_of_one_digit(digits):
    train, test = digits
    one = np.flatnonzero(train.labels == 4)[:1]
    few = train[np.r_[np.flatnonzero(train.labels != 4), one]]
    recogniser = svm().fit(few.images, few.labels)
    assert recogniser.classes_.tolist() == list(range(10))
    probabilities = recogniser.predict_proba(test.images[test.labels != 4])
    assert 0.9 < probabilities.max(axis=1).mean() < 1


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_a_temperature_of_one_where_every_fold_lacks_a_class():
    X, y = np.array([[0.0], [0.1], [1.0], [1.1], [2.0], [2.1]]), [0, 0, 1, 1, 2, 2]
    model = Calibrated(SVM()).fit(X, y, groups=y)
    assert model.temperature_ == 1 and model.predict(X).tolist() == y


# Deskewing


@given(st.integers(-3, 3), st.integers(-3, 3), st.floats(-0.4, 0.4))
@settings(deadline=None, max_examples=30)
def test_deskew_removes_position_and_slant(down, across, slope):
    bar = np.zeros((1, 28, 28), np.uint8)
    for row in range(7, 21):
        column = round(13 + slope * (row - 13)) + across
        bar[0, row + down, column : column + 3] = 255
    upright = deskew(bar)[0].astype(float)
    rows, columns = np.mgrid[:28, :28]
    assert (
        abs(np.average(rows, weights=upright) - 14) < 0.2
        and abs(np.average(columns, weights=upright) - 14) < 0.2
    )
    assert abs(np.average((rows - 14) * (columns - 14), weights=upright)) < 0.5


def test_deskew_keeps_a_blank_blank_and_its_argument_as_it_was(digits):
    assert not deskew(np.zeros((2, 28, 28), np.uint8)).any()
    images = digits[0].images[:5].copy()
    deskew(images)
    assert np.array_equal(images, digits[0].images[:5])
    assert deskew(images.reshape(5, 784)).shape == (5, 28, 28)


@pytest.mark.parametrize("gamma", [0, -1, np.nan, "scale", None])
def test_a_gamma_out_of_range_is_refused(digits, gamma):
    few = digits[0][:60]
    with pytest.raises(ValueError, match="gamma = .*; expected a number above 0"):
        SVM(gamma=gamma).fit(few.flat, few.labels)


def test_fewer_digits_than_components_are_refused(digits):
    with pytest.raises(DataError, match="training digits: found 40; expected at least 50"):
        svm().fit(digits[0].images[:40], digits[0].labels[:40])
