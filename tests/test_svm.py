"""The SVM: the same answers whoever trained it, and model files that are whole or refused."""
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitrec.cli import make
from digitrec.data import DataError, load
from digitrec.scores import opinion
from digitrec.svm import SVM, deskew, load_recogniser, save, svm

@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def fitted(digits):
    return svm().fit(digits[0].images, digits[0].labels)


def test_the_svm_keeps_the_recognisers_contract(digits):
    from sklearn.base import clone, is_classifier

    train, test = digits
    recogniser = make("svm", train)
    assert is_classifier(recogniser)
    again = clone(recogniser).fit(train.images, train.labels)
    recogniser.fit(train.images, train.labels)
    probabilities = recogniser.predict_proba(test.images)
    assert probabilities.shape == (len(test), 10) and np.allclose(probabilities.sum(axis=1), 1)
    assert (recogniser.classes_[probabilities.argmax(axis=1)] == recogniser.predict(test.images)).all()
    assert np.array_equal(again.predict_proba(test.images), probabilities)
    assert (recogniser.predict(test.images) == test.labels).mean() >= 0.97


@pytest.mark.parametrize("images", [np.zeros((2, 28, 28)), np.zeros((2, 784), np.uint8), np.zeros((28, 28), np.uint8)])
def test_images_of_another_form_are_refused(fitted, images):
    with pytest.raises(DataError, match=r"expected uint8 of shape \(n, 28, 28\)"):
        fitted.predict(images)


def test_plain_and_fast_give_the_same_answers(digits, monkeypatch):
    pytest.importorskip("sklearnex", reason="needs digitrec[fast]")
    train, test = digits
    fast = SVM().fit(train.flat, train.labels)
    monkeypatch.setitem(sys.modules, "sklearnex.svm", None)
    plain = SVM().fit(train.flat, train.labels)
    assert np.allclose(fast.margins(test.flat), plain.margins(test.flat), atol=0.01)
    assert (fast.predict(test.flat) == plain.predict(test.flat)).mean() > 0.998


@pytest.mark.parametrize("classes", [[3, 8], [1, 4, 7], range(10)])
def test_margins_are_those_of_scikit_learn(digits, classes):
    from sklearn.svm import SVC

    train, test = (part[np.isin(part.labels, list(classes))] for part in digits)
    ours = SVM().fit(train.flat, train.labels)
    theirs = SVC(C=5, gamma=0.05, decision_function_shape="ovo").fit(train.flat, train.labels).decision_function(test.flat)
    upper = np.triu_indices(len(classes), 1)
    theirs = -theirs[:, None] if len(classes) == 2 else theirs  # scikit-learn's one margin is the second class's
    assert np.allclose(ours.margins(test.flat)[:, *upper], theirs, atol=0.01)


def test_two_classes_are_enough(digits):
    train, test = (part[part.labels < 2] for part in digits)
    recogniser = svm().fit(train.images, train.labels)
    probabilities = opinion(recogniser, test.images)
    assert (probabilities[:, 2:] == 0).all() and np.allclose(probabilities.sum(axis=1), 1)
    assert (probabilities.argmax(axis=1) == recogniser.predict(test.images)).all()
    assert (recogniser.predict(test.images) == test.labels).mean() > 0.98


def test_an_unknown_class_gets_no_probability(digits):
    train, test = digits
    some = train[train.labels < 7]
    probabilities = opinion(svm().fit(some.images, some.labels), test.images)
    assert (probabilities[:, 7:] == 0).all() and np.allclose(probabilities.sum(axis=1), 1)


@given(st.integers(-3, 3), st.integers(-3, 3), st.floats(-0.4, 0.4))
@settings(deadline=None, max_examples=30)
def test_deskew_takes_away_place_and_lean(down, across, slope):
    bar = np.zeros((1, 28, 28), np.uint8)
    for row in range(7, 21):
        column = round(13 + slope * (row - 13)) + across
        bar[0, row + down, column : column + 3] = 255
    upright = deskew(bar)[0].astype(float)
    rows, columns = np.mgrid[:28, :28]
    assert abs(np.average(rows, weights=upright) - 14) < 0.2 and abs(np.average(columns, weights=upright) - 14) < 0.2
    assert abs(np.average((rows - 14) * (columns - 14), weights=upright)) < 0.5


def test_a_kept_recogniser_gives_the_same_answers(fitted, digits, tmp_path):
    again = load_recogniser(save(fitted, tmp_path / "model.skops"))
    assert np.array_equal(again.predict_proba(digits[1].images), fitted.predict_proba(digits[1].images))


def test_a_damaged_model_file_is_refused_or_harmless(fitted, digits, tmp_path):
    images, good = digits[1].images[:50], save(fitted, tmp_path / "model.skops").read_bytes()
    expected, bad = fitted.predict_proba(images), tmp_path / "bad.skops"
    rng, refused = np.random.default_rng(0), 0
    for trial in range(60):
        damaged = bytearray(good)
        if trial % 3:
            damaged[rng.integers(len(good))] ^= 1 << rng.integers(8)
        else:
            del damaged[rng.integers(len(good)) :]
        bad.write_bytes(damaged)
        try:
            assert np.array_equal(load_recogniser(bad).predict_proba(images), expected)
        except DataError as error:
            assert "bad.skops" in str(error)
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("kind", ["linear", "dict", "bloated"])
def test_a_file_that_holds_no_recogniser_is_refused(fitted, tmp_path, monkeypatch, kind):
    import skops.io
    from sklearn.linear_model import LinearRegression

    path = tmp_path / "model.skops"
    monkeypatch.setattr("digitrec.svm.MAX_MODEL", 20_000_000)
    skops.io.dump({"linear": LinearRegression().fit([[0], [1]], [0, 1]), "dict": {}}.get(kind, fitted), path)
    if kind == "bloated":
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("more.npy", bytes(30_000_000))
    with pytest.raises(DataError, match="at most" if kind == "bloated" else "no whole model"):
        load_recogniser(path)


def test_a_model_file_runs_no_code(tmp_path):
    import joblib

    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return open, (str(marker), "w")

    joblib.dump(Hostile(), tmp_path / "model.skops")
    with pytest.raises(DataError, match="no whole model"):
        load_recogniser(tmp_path / "model.skops")
    assert not marker.exists()
