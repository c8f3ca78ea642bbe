"""Distortions and attacks: each does what it says, keeps its limits, and refuses what cannot be."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from digitrec.data import DataError, Digits

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec import inside
from digitrec import robustness as module
from digitrec.nets import predict_model, seeded
from digitrec.recipe import registered
from digitrec.robustness import (
    DISTORTIONS,
    attack,
    distort,
    loss_gradient,
    plot_robustness,
    robustness,
)
from digitrec.training import keras

RNG = np.random.default_rng(0)
DIGITS = Digits(
    RNG.integers(0, 256, (40, 28, 28)).astype(np.uint8), RNG.integers(0, 10, 40), "noise"
)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def model():
    "A small net that was not trained: enough to follow a gradient."
    with seeded(0):
        return registered("tiny_net")()


# Distortions


@pytest.mark.parametrize(
    "kind, strength",
    [
        ("coffee", 1),
        ("shift", 9),
        ("shift", -1),
        ("rotation", float("nan")),
        ("thickness", 1.5),
        ("occlusion", 15),
        ("inversion", 1.1),
        ("shift", "3"),
        ("blur", None),
    ],
)
def test_distortions_beyond_their_limits_are_refused(kind, strength):
    with pytest.raises(ValueError, match="distort") as caught:
        distort(DIGITS.images, kind, strength)
    assert not isinstance(caught.value, DataError)


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_distortions_return_images_and_leave_theirs_alone(kind):
    before = DIGITS.images.copy()
    for strength in DISTORTIONS[kind][1]:
        bent = distort(DIGITS.images, kind, strength)
        assert bent.dtype == np.uint8 and bent.shape == before.shape
        assert (bent == before).all() == (strength == 0)
        assert (bent == distort(DIGITS.images, kind, strength)).all()
        assert distort(DIGITS.images[:0], kind, strength).shape == (0, 28, 28)
    assert (DIGITS.images == before).all()


def test_distortions_do_what_they_say():
    stroke = np.zeros((50, 28, 28), np.uint8)
    stroke[:, 8:20, 12:15] = 255
    for pixels in (-2, -1, 1, 4):
        assert (distort(stroke, "thickness", pixels)[0, 14] > 0).sum() == 3 + pixels
    directions = [pair for pair in np.ndindex(3, 3) if pair != (1, 1)]
    for pixels in (2, 6):
        corners = {
            tuple(np.argwhere(image)[0].tolist()) for image in distort(stroke, "shift", pixels)
        }
        assert corners == {(8 + (y - 1) * pixels, 12 + (x - 1) * pixels) for y, x in directions}
    full = np.full((50, 28, 28), 255, np.uint8)
    assert ((distort(full, "occlusion", 6) == 0).sum(axis=(1, 2)) == 36).all()
    assert not distort(full, "occlusion", 14)[:, 13:15, 13:15].any()  # it always covers the middle
    assert len({image.tobytes() for image in distort(stroke, "rotation", 30)}) == 2
    assert np.ptp(distort(DIGITS.images, "inversion", 0.5)) <= 1


class Recorder:
    "Predicts the labels, and remembers the pictures"

    def __init__(self):
        self.seen = []

    def predict(self, images):
        self.seen.append(images.tobytes())
        return DIGITS.labels[: len(images)]


def test_all_recognisers_meet_the_same_pictures():
    first, second = Recorder(), Recorder()
    table = robustness({"first": first, "second": second}, DIGITS, ["noise", "shift"], seed=3)
    assert first.seen == second.seen
    assert len(set(first.seen)) == len(first.seen) - 1  # strength 0 of both is the same
    assert (table["accuracy"] == 1).all() and len(table) == 2 * (7 + 7)


def test_the_figure_has_a_panel_for_each_distortion_and_a_legend():
    table = robustness({"first": Recorder()}, DIGITS)
    assert set(table["distortion"]) == set(DISTORTIONS) and len(plot_robustness(table).axes) == 8
    assert len(plot_robustness(table[table["distortion"] == "noise"]).axes) == 4


def test_unlabelled_digits_and_unknown_kinds_are_refused():
    with pytest.raises(DataError, match="nobody's: found no labels"):
        robustness({}, Digits(DIGITS.images, name="nobody's"))
    with pytest.raises(ValueError, match="coffee"):
        robustness({"first": Recorder()}, DIGITS, ["coffee"])


# Attacks


def test_there_is_a_single_gradient(model, monkeypatch):
    calls, original = [], inside.input_gradient
    recorded = lambda *args: calls.append(args) or original(*args)  # noqa: E731
    monkeypatch.setattr(inside, "input_gradient", recorded)
    monkeypatch.setattr(module, "input_gradient", recorded)
    attack(model, DIGITS.images[:1], DIGITS.labels[:1], 3)
    inside.saliency(model, DIGITS.images[:1], 1, 2)
    assert len(calls) == 2


def test_the_gradient_is_what_an_experiment_finds(model):
    images, labels = DIGITS.images[:3].astype(np.float32), DIGITS.labels[:3]
    gradient, rng, size = loss_gradient(model, images, labels), np.random.default_rng(0), 0.5
    for i in range(3):
        step = rng.normal(0, 1, (1, 28, 28)).astype(np.float32)
        low, high = (
            -np.log(predict_model(model, images[i : i + 1] + sign * size * step)[0, labels[i]])
            for sign in (-1, 1)
        )
        assert np.isclose(
            (high - low) / (2 * size), (gradient[i] * step[0]).sum(), rtol=0.1, atol=1e-4
        )


def test_a_confident_net_still_has_a_gradient():
    "Clipped probabilities would have none, and a weak net would seem robust."
    layers, rng = keras.layers, np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((28, 28)), layers.Flatten(), layers.Dense(10, activation="softmax")]
    )
    model.layers[-1].set_weights([rng.normal(0, 0.005, (784, 10)), np.zeros(10)])
    probabilities = predict_model(model, DIGITS.images)
    confident = probabilities.max(axis=1) > 1 - 1e-7
    assert confident.sum() > 3
    images = DIGITS.images[confident].astype(np.float32)
    gradient = loss_gradient(model, images, probabilities.argmax(axis=1)[confident])
    assert gradient.any(axis=(1, 2)).all()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("epsilon", [0, 1, 30, 255])
def test_an_attack_keeps_its_distance_and_raises_the_loss(model, epsilon, steps):
    changed = attack(model, DIGITS.images, DIGITS.labels, epsilon, steps)
    assert changed.dtype == np.uint8
    assert np.abs(changed.astype(int) - DIGITS.images).max() <= epsilon
    assert (attack(model, DIGITS.images, DIGITS.labels, epsilon, steps) == changed).all()
    if epsilon == 30:
        before, after = (
            predict_model(model, images)[np.arange(40), DIGITS.labels]
            for images in (DIGITS.images, changed)
        )
        assert np.log(after).mean() < np.log(before).mean()
    assert attack(model, DIGITS.images[:0], DIGITS.labels[:0], epsilon, steps).shape == (0, 28, 28)


def test_an_attack_on_many_digits_is_that_on_each():
    "Digits are attacked 500 at a time."
    with seeded(0):
        model = registered("tiny_net")()
    images, labels = np.tile(DIGITS.images, (13, 1, 1)), np.tile(DIGITS.labels, 13)
    changed = attack(model, images, labels, 20)
    assert len(changed) == 520
    assert (
        changed[:40] == changed[480:]
    ).mean() > 0.999  # the sign of a slope near zero may differ


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": 256},
        {"epsilon": -1},
        {"epsilon": 0.1},
        {"epsilon": 8, "steps": 0},
        {"epsilon": 8, "steps": 2.0},
    ],
)
def test_attacks_that_cannot_be_are_refused(model, settings):
    with pytest.raises(ValueError, match="attack: ") as caught:
        attack(model, DIGITS.images, DIGITS.labels, **settings)
    assert not isinstance(caught.value, DataError)


def test_labels_of_another_length_are_refused(model):
    with pytest.raises(DataError, match="labels"):
        attack(model, DIGITS.images, DIGITS.labels[1:], 8)


@pytest.mark.parametrize("label", [-1, 10, 0.5])
def test_a_gradient_needs_labels_of_digits(model, label):
    with pytest.raises(DataError, match="labels"):
        loss_gradient(model, DIGITS.images[:1].astype(float), np.array([label]))


def test_a_net_without_a_softmax_is_refused():
    layers = keras.layers
    model = keras.Sequential([keras.Input((28, 28)), layers.Flatten(), layers.Dense(10)])
    with pytest.raises(ValueError, match="ends in Dense without a softmax"):
        attack(model, DIGITS.images, DIGITS.labels, 8)
