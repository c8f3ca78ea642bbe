"""Reading the mistakes: whatever the numbers, a table, a figure or a clear refusal."""
import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from digitrec.data import DataError, Digits

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec.cnn import RECIPES
from digitrec.errors import (
    DISTORTIONS,
    attack,
    by_writer,
    corrected,
    distort,
    mistakes,
    plot_robustness,
    read_judgements,
    rescues,
    robustness,
    show_opinions,
    show_pair,
    slope,
    suspects,
    top_three,
    uncertainty,
)
from digitrec.scores import accuracy, compare, confusion
from digitrec.training import Net, keras, probabilities, seeded

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def some(n=40, seed=0, noise=1.0):
    "Digits of noise with labels, and probabilities that are often right."
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8), rng.integers(0, 10, n)
    odds = np.exp(3 * np.eye(10)[labels] + rng.normal(0, noise, (n, 10)))
    return Digits(images, labels, "some", rng.integers(0, 5, n)), odds / odds.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def net():
    "A small net that has learned nothing: enough to follow a slope."
    net = Net(RECIPES["tiny"])
    with seeded(0):
        net.net_, net.classes_ = net.recipe.net(), np.arange(10)
    return net


# Bad input: each of them a DataError that says what was found

DIGITS, SAID = some()
UNLABELLED = Digits(DIGITS.images, name="nobody's")
BAD_PROBABILITIES = {
    "not summing to 1": SAID * 2, "below 0": SAID - 0.5, "too few": SAID[1:], "nine columns": SAID[:, :9],
    "no numbers": SAID * np.nan, "whole numbers": np.eye(10, dtype=int)[DIGITS.labels], "a row": SAID[0],
}


@pytest.mark.parametrize("kind", BAD_PROBABILITIES)
@pytest.mark.parametrize("ask", [
    lambda said: mistakes(DIGITS, said), lambda said: suspects(DIGITS, said), lambda said: show_opinions(DIGITS, said, [0]),
    lambda said: show_pair(DIGITS, said, 1, 2), lambda said: uncertainty(SAID, [said, SAID]),
], ids=["mistakes", "suspects", "show_opinions", "show_pair", "uncertainty"])
def test_what_is_no_probabilities_is_refused(ask, kind):
    with pytest.raises(DataError, match="probabilities"):
        ask(BAD_PROBABILITIES[kind])


@pytest.mark.parametrize("ask", [
    lambda: mistakes(UNLABELLED, SAID), lambda: suspects(UNLABELLED, SAID), lambda: show_pair(UNLABELLED, SAID, 1, 2),
    lambda: by_writer(UNLABELLED, DIGITS.labels), lambda: corrected(UNLABELLED, pd.DataFrame()),
    lambda: robustness({}, UNLABELLED), lambda: read_judgements("nowhere.json", UNLABELLED),
], ids=["mistakes", "suspects", "show_pair", "by_writer", "corrected", "robustness", "read_judgements"])
def test_digits_without_labels_are_refused(ask):
    with pytest.raises(DataError, match="nobody's: found no labels"):
        ask()


@pytest.mark.parametrize("which", [[0, 40], [-1], [0.5], ["4"], [[1, 2]], [True]])
def test_ids_that_are_not_there_are_refused(which):
    with pytest.raises(DataError, match="ids to show"):
        show_opinions(DIGITS, SAID, which)


@pytest.mark.parametrize("asked", [{"actual": 10}, {"predicted": -1}, {"actual": 1.0}, {"predicted": "4"}])
def test_a_pair_of_no_digits_is_refused(asked):
    with pytest.raises(DataError, match="|".join(asked)):
        mistakes(DIGITS, SAID, **asked)


def test_no_digits_at_all_are_refused():
    for ask in (mistakes, suspects):
        with pytest.raises(DataError, match="no digits"):
            ask(DIGITS[:0], SAID[:0])


@pytest.mark.parametrize("kind, strength", [
    ("coffee", 1), ("shift", 9), ("shift", -1), ("rotation", float("nan")), ("thickness", 1.5), ("occlusion", 15),
    ("inversion", 1.1)])
def test_distortions_beyond_their_limits_are_refused(kind, strength):
    with pytest.raises(DataError, match="distort"):
        distort(DIGITS.images, kind, strength)


@pytest.mark.parametrize("how", [{"epsilon": 256}, {"epsilon": -1}, {"epsilon": 0.1}, {"epsilon": 8, "steps": 0},
                                 {"epsilon": 8, "steps": 2.0}])
def test_attacks_that_cannot_be_are_refused(net, how):
    with pytest.raises(DataError, match="attack"):
        attack(net, DIGITS.images, DIGITS.labels, **how)
    with pytest.raises(DataError, match="labels"):
        attack(net, DIGITS.images, DIGITS.labels[1:], 8)


def test_a_net_of_another_kind_is_refused():
    layers, net = keras.layers, Net(RECIPES["tiny"])
    for end in ([layers.Dense(10), layers.Softmax()], [layers.Dense(10), layers.Activation("softmax")]):
        net.net_ = keras.Sequential([keras.Input((28, 28)), layers.Flatten(), *end])
        with pytest.raises(DataError, match="Sequential that ends in"):
            slope(net, DIGITS.images, DIGITS.labels)
    net.net_ = RECIPES["first-2020"].net()
    with pytest.raises(DataError, match="FirstNet that ends in"):
        slope(net, DIGITS.images, DIGITS.labels)


# Mistakes

def test_a_pair_without_mistakes_is_a_figure_that_says_so():
    said = np.eye(10)[DIGITS.labels]
    for figure in (show_pair(DIGITS, said, 4, 9), show_opinions(DIGITS, said, [])):
        assert not any(ax.images for ax in figure.axes) and figure.get_suptitle()
    assert show_pair(DIGITS, said, 4, 9).get_suptitle() == "no 4 of 40 digits was read as a 9"


@given(st.integers(1, 60), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_mistakes_are_all_of_them_and_ordered(n, seed):
    digits, said = some(n, seed, noise=3)
    table, predicted = mistakes(digits, said), said.argmax(axis=1)
    assert len(table) == accuracy(digits.labels, predicted).misses
    assert (table["predicted"] == predicted[table.index]).all() and (table["actual"] == digits.labels[table.index]).all()
    assert (np.diff(table["confidence"]) <= 0).all()
    matrix = confusion(digits.labels, predicted)
    assert all(len(mistakes(digits, said, i, j)) == matrix[i, j] * (i != j) for i in range(0, 10, 3) for j in range(10))


def test_opinions_are_drawn_with_id_label_and_three_answers():
    figure = show_opinions(DIGITS, SAID, [7, 3])
    assert [ax.get_title() for ax in figure.axes[:2]] == [f"{i}: label {DIGITS.labels[i]}\n{top_three(SAID)[i]}" for i in (7, 3)]
    assert show_opinions(UNLABELLED, SAID, [7]).axes[0].get_title().startswith("7\n")


def test_ties_in_the_three_likeliest_go_to_the_lower_digit():
    assert top_three(np.full((1, 10), 0.1)) == ["0 10%, 1 10%, 2 10%"]


# Uncertainty

@given(st.integers(1, 40), st.integers(0, 999), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_uncertainty_stays_within_its_limits(n, seed, several):
    members = [some(n, seed + i, noise=4)[1] for i in range(several)]
    table = uncertainty(np.mean(members, axis=0), members)
    assert table["margin"].between(0, 1).all() and table["entropy"].between(0, np.log(10) + 1e-9).all()
    assert (table["disagreement"] >= 0).all() and (table["disagreement"] <= table["entropy"] + 1e-9).all()
    if several == 1:
        assert np.allclose(table["disagreement"], 0)


def test_one_opinion_has_no_disagreement():
    assert list(uncertainty(SAID)) == ["margin", "entropy"]
    sure, lost = uncertainty(np.stack([np.eye(10)[3], np.full(10, 0.1)])).itertuples(index=False)
    assert tuple(sure) == (0, 0) and lost.margin == 1 and np.isclose(lost.entropy, np.log(10))


# Rescues and writers

def test_rescues_are_what_compare_counts():
    answers = {str(seed): some(40, 0, noise)[1].argmax(axis=1) for seed, noise in enumerate((2, 3, 4))}
    table = rescues(DIGITS.labels, answers)
    for one in answers:
        assert table.loc[one, one] == accuracy(DIGITS.labels, answers[one]).misses
        for other in set(answers) - {one}:
            assert table.loc[one, other] == compare(DIGITS.labels, answers[one], answers[other]).only_second
    with pytest.raises(DataError, match="shape"):
        rescues(DIGITS.labels, {"short": DIGITS.labels[1:]})


def test_writers_share_out_all_digits_and_all_misses():
    predicted = some(40, 0, 4)[1].argmax(axis=1)
    table = by_writer(DIGITS, predicted)
    assert table["digits"].sum() == 40 and table["misses"].sum() == accuracy(DIGITS.labels, predicted).misses
    assert (np.diff(table["misses"]) <= 0).all() and np.allclose(table["share"], table["misses"] / table["digits"])
    with pytest.raises(DataError, match="no writers"):
        by_writer(Digits(DIGITS.images, DIGITS.labels), predicted)
    with pytest.raises(DataError, match="shape"):
        by_writer(DIGITS, predicted[1:])


# Judgements

def entry(i, votes=(5, 0, 0), **other):
    label = int(DIGITS.labels[i])
    return {"id": i, "given_original_label": label, "our_guessed_label": (label + 1) % 10,
            "mturk": dict(zip(("given", "guessed", "neither"), votes, strict=True))} | other


def kept(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("votes, verdict", [
    ((5, 0, 0), "right"), ((3, 2, 0), "right"), ((2, 3, 0), "wrong"), ((0, 5, 0), "wrong"), ((2, 2, 1), "unclear"),
    ((0, 2, 3), "unclear"), ((0, 0, 5), "unclear")])
def test_a_verdict_is_the_majoritys(tmp_path, votes, verdict):
    judged = read_judgements(kept(tmp_path / "judged.json", [entry(4, votes)]), DIGITS)
    assert judged.loc[4, "verdict"] == verdict
    labels, clear = corrected(DIGITS, judged)
    assert (labels[4] == (DIGITS.labels[4] + 1) % 10) == (verdict == "wrong") and clear[4] == (verdict != "unclear")
    rest = np.arange(40) != 4
    assert (labels == DIGITS.labels)[rest].all() and clear[rest].all()


def test_where_the_guess_is_the_label_its_votes_count_once(tmp_path):
    doubled = [entry(i, votes, our_guessed_label=int(DIGITS.labels[i]))
               for i, votes in enumerate([(5, 5, 0), (3, 3, 2), (2, 2, 3)])]
    judged = read_judgements(kept(tmp_path / "judged.json", doubled), DIGITS)
    assert judged["verdict"].tolist() == ["right", "right", "unclear"]


@pytest.mark.parametrize("content", [
    "", "[", "7", "null", '"text"', "{}", "[]", "[7]", "[{}]", [entry(40 - 1) | {"id": 40}], [entry(1, given_original_label="4")],
    [entry(1, our_guessed_label=12)], [entry(1, mturk={})], [entry(1, mturk=None)], [entry(1, (5, 0, -1))], [entry(1, id=1.5)],
    [entry(1, given_original_label=(int(DIGITS.labels[1]) + 3) % 10)], [entry(1), entry(1)], [entry(1, id=True)],
], ids=lambda content: str(content)[:30])
def test_a_file_of_another_form_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="judged.json"):
        read_judgements(kept(tmp_path / "judged.json", content), DIGITS)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_judgements(tmp_path / "judged.json", DIGITS)


# Suspects

@given(st.integers(1, 60), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_suspects_hold_every_digit_once_in_the_order_of_their_margins(n, seed):
    digits, said = some(n, seed, noise=3)
    table = suspects(digits, said)
    assert sorted(table.index) == list(range(n)) and (np.diff(table["margin"]) >= 0).all()
    assert (table["given"] != table["suggested"]).all() and table["margin"].between(-1, 1).all()
    wrong = mistakes(digits, said).index
    assert set(table.index[:len(wrong)]) == set(wrong)  # a margin below 0 is a mistake


def test_changed_labels_are_found():
    digits, _ = some(400)
    said = np.eye(10)[digits.labels] * 0.8 + np.random.default_rng(0).dirichlet(np.ones(10), 400) * 0.2
    changed = np.arange(0, 400, 20)
    labels = digits.labels.copy()
    labels[changed] = (labels[changed] + 1) % 10
    table = suspects(Digits(digits.images, labels), said)
    assert set(table.index[:20]) == set(changed) and set(table.index[table["confident"]]) == set(changed)
    assert (table["suggested"].loc[changed] == digits.labels[changed]).all()


def test_suspects_are_those_of_cleanlab():
    count = pytest.importorskip("cleanlab.count", reason="needs cleanlab")
    from cleanlab.rank import get_normalized_margin_for_each_label

    for seed in range(5):
        digits, said = some(600, seed, noise=2)
        table = suspects(digits, said).sort_index()
        joint, ids = count.compute_confident_joint(digits.labels, said, calibrate=False, return_indices_of_off_diagonals=True)
        assert set(ids) == set(table.index[table["confident"]])
        margins = get_normalized_margin_for_each_label(digits.labels, said)
        assert np.allclose(margins, (table["margin"] + 1) / 2)


def test_a_class_that_nobody_has_suspects_nobody():
    labels = DIGITS.labels % 5
    table = suspects(Digits(DIGITS.images, labels), SAID)
    assert not table["confident"].loc[[i for i in range(40) if SAID[i].argmax() > 4 and SAID[i].max() > 0.9]].any()


# Distortions

@pytest.mark.parametrize("kind", DISTORTIONS)
def test_distortions_give_images_and_leave_theirs_alone(kind):
    before = DIGITS.images.copy()
    for strength in DISTORTIONS[kind][1]:
        bent = distort(DIGITS.images, kind, strength)
        assert bent.dtype == np.uint8 and bent.shape == before.shape
        assert (bent == before).all() == (strength == 0)
        assert distort(DIGITS.images[:0], kind, strength).shape == (0, 28, 28)
    assert (DIGITS.images == before).all()


def test_distortions_do_what_they_say():
    stroke = np.zeros((50, 28, 28), np.uint8)
    stroke[:, 8:20, 12:15] = 255
    for pixels in (-2, -1, 1, 4):
        assert (distort(stroke, "thickness", pixels)[0, 14] > 0).sum() == 3 + pixels
    for pixels in (2, 6):
        ends = {tuple(np.argwhere(image)[0]) for image in distort(stroke, "shift", pixels)}
        assert ends == {(8 + i * pixels, 12 + j * pixels) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)}
    full = np.full((50, 28, 28), 255, np.uint8)
    assert ((distort(full, "occlusion", 6) == 0).sum(axis=(1, 2)) == 36).all()
    assert not distort(full, "occlusion", 14)[:, 13:15, 13:15].any()  # wherever it lies, it covers the middle
    assert len({image.tobytes() for image in distort(stroke, "rotation", 30)}) == 2
    assert np.ptp(distort(DIGITS.images, "inversion", 0.5)) <= 1


def test_robustness_asks_everybody_about_the_same_pictures():
    class Known:
        "Answers a digit by the picture's bytes"
        def __init__(self):
            self.seen = []

        def predict(self, images):
            self.seen.append(images.tobytes())
            return DIGITS.labels[: len(images)]

    one, other = Known(), Known()
    table = robustness({"one": one, "other": other}, DIGITS, ["noise", "shift"], seed=3)
    assert one.seen == other.seen and len(set(one.seen)) == len(one.seen) - 1  # nothing and nothing are the same
    assert (table["accuracy"] == 1).all() and len(table) == 2 * (7 + 7)
    assert len(plot_robustness(table).axes) == 4 and len(plot_robustness(table[table["distortion"] == "noise"]).axes) == 4
    every = robustness({"one": one}, DIGITS)
    assert set(every["distortion"]) == set(DISTORTIONS) and len(plot_robustness(every).axes) == 8


# Attacks

def test_the_slope_is_what_trying_gives(net):
    images = DIGITS.images[:3].astype(np.float32)
    steep = slope(net, images, DIGITS.labels[:3])
    rng, size = np.random.default_rng(0), 0.5
    for i in range(3):
        way = rng.normal(0, 1, (1, 28, 28)).astype(np.float32)
        ends = [-np.log(probabilities(net.net_, images[i: i + 1] + sign * size * way)[0, DIGITS.labels[i]]) for sign in (-1, 1)]
        assert np.isclose((ends[1] - ends[0]) / (2 * size), (steep[i] * way[0]).sum(), rtol=0.1, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("epsilon", [0, 1, 30, 255])
def test_an_attack_keeps_its_distance_and_raises_the_loss(net, epsilon, steps):
    changed = attack(net, DIGITS.images, DIGITS.labels, epsilon, steps)
    assert changed.dtype == np.uint8 and np.abs(changed.astype(int) - DIGITS.images).max() <= epsilon
    assert (attack(net, DIGITS.images, DIGITS.labels, epsilon, steps) == changed).all()
    if epsilon == 30:
        before, after = (probabilities(net.net_, images)[np.arange(40), DIGITS.labels] for images in (DIGITS.images, changed))
        assert np.log(after).mean() < np.log(before).mean()
    assert attack(net, DIGITS.images[:0], DIGITS.labels[:0], epsilon, steps).shape == (0, 28, 28)
