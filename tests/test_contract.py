"""One contract for every recogniser: `Net`, `Ensemble`, `Pretrained` and the SVM."""

import pickle
from dataclasses import replace

import joblib
import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from digitrec.data import DataError, Digits
from digitrec.export import Pretrained, load_pretrained
from digitrec.scores import cross_validate, predict_probabilities
from digitrec.sources import load
from digitrec.svm import svm

TRAIN, TEST = load("digits")
SOME = TRAIN[:200]
WRITERS = np.arange(200) // 20
BUILDERS = {"svm": lambda: svm(components=20), "pretrained": lambda: load_pretrained("tiny")}

try:
    from digitrec.ensemble import Ensemble
    from digitrec.recipe import RECIPES
    from digitrec.training import Net
except ImportError:  # the base package alone
    RECIPE = None
else:
    RECIPE = replace(RECIPES["few"], epochs=2)
    BUILDERS["net"] = lambda: Net(RECIPE, verbose=False)
    BUILDERS["ensemble"] = lambda: Ensemble(RECIPE, k=2, verbose=False)

needs_keras = pytest.mark.skipif(RECIPE is None, reason="needs Keras and an engine")
TRAINED = sorted(set(BUILDERS) - {"pretrained"})  # those that `fit` trains


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(name):
    "A recogniser of each kind, fitted to 200 digits."
    return BUILDERS[name]().fit(SOME.images, SOME.labels)


def test_probabilities_are_probabilities(fitted):
    probabilities = fitted.predict_proba(TEST.images[:50])
    assert probabilities.shape == (50, 10) and probabilities.dtype == np.float64
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-9) and (probabilities >= 0).all()
    assert (fitted.classes_ == np.arange(10)).all() and fitted.n_features_in_ == 784
    assert (fitted.predict(TEST.images[:50]) == probabilities.argmax(axis=1)).all()


def test_one_digit_is_predicted_as_among_many(fitted):
    together = fitted.predict_proba(TEST.images[:40])
    alone = np.concatenate([fitted.predict_proba(TEST.images[i : i + 1]) for i in (0, 20, 39)])
    assert np.allclose(together[[0, 20, 39]], alone, atol=1e-5)


def test_flat_rows_are_images(fitted):
    flat = TEST.images[:9].reshape(9, 784)
    assert np.allclose(
        fitted.predict_proba(flat), fitted.predict_proba(TEST.images[:9]), atol=1e-12
    )


def test_no_images_have_no_predictions(fitted):
    assert fitted.predict_proba(TEST.images[:0]).shape == (0, 10)
    assert fitted.predict(TEST.images[:0]).shape == (0,)
    assert predict_probabilities(fitted, TEST.images[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    "images",
    [
        TEST.images[:3] / 255,
        TEST.images[0],
        TEST.images[:3, :27],
        None,
        "x",
        TEST.images[:3].astype(np.int16),
    ],
    ids=["floats", "one image", "27 rows", "nothing", "a word", "int16"],
)
def test_what_is_no_image_is_refused(fitted, images):
    for predict in (fitted.predict, fitted.predict_proba):
        with pytest.raises(DataError, match="28"):
            predict(images)


def test_a_clone_has_the_parameters_and_nothing_else(name, fitted):
    fresh = clone(fitted)
    assert repr(fresh.get_params()) == repr(clone(fitted).get_params()) and is_classifier(fresh)
    assert is_classifier(fitted)
    if name != "pretrained":
        assert not [attribute for attribute in vars(fresh) if attribute.endswith("_")]


@pytest.mark.parametrize("name", TRAINED)
def test_nothing_is_predicted_before_fit(name):
    recogniser = BUILDERS[name]()
    for predict in (recogniser.predict, recogniser.predict_proba):
        with pytest.raises(NotFittedError):
            predict(TEST.images[:3])
    with pytest.raises(NotFittedError):
        check_is_fitted(recogniser)


@pytest.mark.parametrize("how", ["pickle", "joblib"])
def test_a_round_trip_keeps_the_predictions(fitted, tmp_path, how):
    if how == "pickle":
        again = pickle.loads(pickle.dumps(fitted))  # noqa: S301 (our own bytes)
    else:
        joblib.dump(fitted, tmp_path / "recogniser.joblib")
        again = joblib.load(tmp_path / "recogniser.joblib")
    assert (again.predict_proba(TEST.images[:20]) == fitted.predict_proba(TEST.images[:20])).all()


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_writers_are_taken_as_groups(name):
    assert has_fit_parameter(BUILDERS[name](), "groups")
    fitted = BUILDERS[name]().fit(SOME.images, SOME.labels, groups=WRITERS)
    assert fitted.predict(TEST.images[:3]).shape == (3,)


@needs_keras
def test_writers_stay_on_one_side_of_an_ensembles_folds():
    ensemble = Ensemble(replace(RECIPE, epochs=1), k=2, verbose=False, seed=3)
    digits, seen = Digits(SOME.images, SOME.labels, "some", WRITERS), []

    class Watched(Net):
        def fit(self, images, labels, groups=None, validation=None):
            seen.append(set(groups.tolist()))
            return super().fit(images, labels, groups, validation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("digitrec.ensemble.Net", Watched)
        ensemble.fit(digits.images, digits.labels, groups=digits.writers)
    assert len(seen) == 2 and not seen[0] & seen[1] and seen[0] | seen[1] == set(WRITERS.tolist())


@needs_keras
def test_writers_stay_on_one_side_of_a_nets_hold_out():
    from digitrec import training

    recipe, validated = replace(RECIPE, epochs=1, monitor="val_loss", validation_split=0.3), []
    with pytest.MonkeyPatch.context() as patch:
        split = training.split
        patch.setattr(
            training, "split", lambda *args: validated.append(split(*args)) or validated[0]
        )
        Net(recipe, verbose=False).fit(SOME.images, SOME.labels, groups=WRITERS)
    training_digits, held = validated[0]
    assert not set(training_digits.writers) & set(held.writers)


def test_cross_validation_hands_writers_on():
    class Recogniser:
        classes_ = np.arange(10)

        def get_params(self, deep=True):
            return {}

        def fit(self, images, labels, groups=None):
            assert groups is not None and len(groups) == len(labels)
            return self

        def predict_proba(self, images):
            return np.full((len(images), 10), 0.1)

    digits = Digits(SOME.images, SOME.labels, "some", WRITERS)
    assert cross_validate(Recogniser(), digits, k=2).probabilities.shape == (200, 10)


@pytest.mark.parametrize("name", TRAINED)
def test_scikit_learns_cross_validation(name, tmp_path):
    recogniser = BUILDERS[name]()
    if name != "svm":
        recogniser.set_params(folder=tmp_path)  # both folds' runs go into one folder
    scores = cross_val_score(recogniser, SOME.images, SOME.labels, cv=2, error_score="raise")
    assert scores.shape == (2,)
    if name == "svm":
        assert scores.min() > 0.7
    else:
        assert len(list(tmp_path.rglob("net.json"))) == (2 if name == "net" else 4)


@needs_keras
def test_a_search_reaches_into_the_recipe():
    grid = {"recipe__learning_rate": [1e-9, 4e-3], "seed": [0]}
    recipe = replace(RECIPE, epochs=6, augmentation=None)
    search = GridSearchCV(Net(recipe, verbose=False), grid, cv=2, error_score="raise")
    search.fit(SOME.images, SOME.labels)
    assert search.best_params_["recipe__learning_rate"] == 4e-3
    assert search.best_estimator_.recipe.learning_rate == 4e-3


@needs_keras
@pytest.mark.parametrize("parameters", [{"recipe__rate": 1}, {"recipe__epochs": 0}, {"unknown": 1}])
def test_parameters_that_cannot_be_are_refused(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters)).removeprefix("recipe__")):
        Net(RECIPE).set_params(**parameters)


@needs_keras
def test_a_net_is_not_fitted_after_a_failed_first_epoch():
    wild = replace(RECIPE, optimizer="sgd", learning_rate=1e30, schedule="constant")
    net = Net(RECIPE, verbose=False).fit(SOME.images, SOME.labels)
    net.recipe = wild  # a second fit that fails must not leave the first one's weights behind
    with pytest.raises(FloatingPointError, match="epoch 1, step"):
        net.fit(SOME.images, SOME.labels)
    with pytest.raises(NotFittedError):
        net.predict(TEST.images[:3])


def test_a_pretrained_net_reads_nothing_before_it_predicts(tmp_path):
    reader = Pretrained(tmp_path / "nowhere.onnx")
    with pytest.raises(DataError, match="nowhere.json"):
        reader.predict(TEST.images[:3])


def test_a_pretrained_net_with_another_path_is_another_net():
    reader, small = load_pretrained("tiny"), load_pretrained("small")
    before = reader.predict_proba(TEST.images[:9])
    reader.set_params(path=small.path)
    assert (reader.predict_proba(TEST.images[:9]) == small.predict_proba(TEST.images[:9])).all()
    assert (reader.predict_proba(TEST.images[:9]) != before).any() and reader.card == small.card
