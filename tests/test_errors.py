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
from digitrec.errors import (
    by_writer,
    corrected_by,
    corrected_labels,
    label_issues,
    misclassified,
    read_judgements,
    show_pair,
    show_predictions,
    top_three,
    uncertainty,
)
from digitrec.scores import accuracy, compare, confusion, ece

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def random_digits(n=40, seed=0, noise=1.0):
    "Digits of noise with labels, and probabilities that are often right."
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8), rng.integers(0, 10, n)
    odds = np.exp(3 * np.eye(10)[labels] + rng.normal(0, noise, (n, 10)))
    return Digits(images, labels, "noise", rng.integers(0, 5, n)), odds / odds.sum(
        axis=1, keepdims=True
    )


# Bad input: each of them a DataError that says what was found

DIGITS, PROBABILITIES = random_digits()
UNLABELLED = Digits(DIGITS.images, name="nobody's")
BAD_PROBABILITIES = {
    "not summing to 1": PROBABILITIES * 2,
    "below 0": PROBABILITIES - 0.5,
    "too few": PROBABILITIES[1:],
    "nine columns": PROBABILITIES[:, :9],
    "no numbers": PROBABILITIES * np.nan,
    "whole numbers": np.eye(10, dtype=int)[DIGITS.labels],
    "a row": PROBABILITIES[0],
}


@pytest.mark.parametrize("kind", BAD_PROBABILITIES)
@pytest.mark.parametrize(
    "ask",
    [
        lambda probabilities: misclassified(DIGITS, probabilities),
        lambda probabilities: label_issues(DIGITS, probabilities),
        lambda probabilities: show_predictions(DIGITS, probabilities, [0]),
        lambda probabilities: show_pair(DIGITS, probabilities, 1, 2),
        lambda probabilities: uncertainty(PROBABILITIES, [probabilities, PROBABILITIES]),
    ],
    ids=["misclassified", "label_issues", "show_predictions", "show_pair", "uncertainty"],
)
def test_what_is_no_probabilities_is_refused(ask, kind):
    with pytest.raises(DataError, match="probabilities"):
        ask(BAD_PROBABILITIES[kind])


@pytest.mark.parametrize(
    "ask",
    [
        lambda: misclassified(UNLABELLED, PROBABILITIES),
        lambda: label_issues(UNLABELLED, PROBABILITIES),
        lambda: show_pair(UNLABELLED, PROBABILITIES, 1, 2),
        lambda: by_writer(UNLABELLED, DIGITS.labels),
        lambda: corrected_labels(UNLABELLED, pd.DataFrame()),
        lambda: read_judgements("nowhere.json", UNLABELLED),
    ],
    ids=[
        "misclassified",
        "label_issues",
        "show_pair",
        "by_writer",
        "corrected_labels",
        "read_judgements",
    ],
)
def test_digits_without_labels_are_refused(ask):
    with pytest.raises(DataError, match="nobody's: found no labels"):
        ask()


@pytest.mark.parametrize("which", [[0, 40], [-1], [0.5], ["4"], [[1, 2]], [True], 5, None])
def test_ids_that_are_not_there_are_refused(which):
    with pytest.raises(DataError, match="ids to show"):
        show_predictions(DIGITS, PROBABILITIES, which)


@pytest.mark.parametrize(
    "asked", [{"actual": 10}, {"predicted": -1}, {"actual": 1.0}, {"predicted": "4"}]
)
def test_a_pair_of_no_digits_is_refused(asked):
    with pytest.raises(DataError, match="|".join(asked)):
        misclassified(DIGITS, PROBABILITIES, **asked)


@pytest.mark.parametrize("wrong", [[[0.1] * 10, [1]], 5, None, "text"])
def test_what_is_no_table_of_probabilities_is_refused(wrong):
    for ask in (uncertainty, top_three):
        with pytest.raises(DataError, match="probabilities"):
            ask(wrong)


def test_no_digits_at_all_are_refused():
    for ask in (misclassified, label_issues):
        with pytest.raises(DataError, match="no digits"):
            ask(DIGITS[:0], PROBABILITIES[:0])


# Errors


def test_a_pair_without_errors_draws_nothing_and_prints_a_line(capsys):
    perfect = np.eye(10)[DIGITS.labels]
    assert (
        show_pair(DIGITS, perfect, 4, 9) is None and show_predictions(DIGITS, perfect, []) is None
    )
    assert capsys.readouterr().out == "noise: no digits to show\n" * 2 and not plt.get_fignums()


@given(st.integers(1, 60), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_all_errors_are_listed_in_order(n, seed):
    digits, probabilities = random_digits(n, seed, noise=3)
    table, predicted = misclassified(digits, probabilities), probabilities.argmax(axis=1)
    assert len(table) == accuracy(digits.labels, predicted).errors
    assert (table["predicted"] == predicted[table.index]).all() and (
        table["actual"] == digits.labels[table.index]
    ).all()
    assert (np.diff(table["confidence"]) <= 0).all()
    matrix = confusion(digits.labels, predicted)
    assert all(
        len(misclassified(digits, probabilities, i, j)) == matrix[i, j] * (i != j)
        for i in range(0, 10, 3)
        for j in range(10)
    )


def test_digits_are_drawn_with_id_label_and_three_predictions():
    figure = show_predictions(DIGITS, PROBABILITIES, [7, 3])
    assert [ax.get_title() for ax in figure.axes[:2]] == [
        f"{i}: label {DIGITS.labels[i]}\n{top_three(PROBABILITIES)[i]}" for i in (7, 3)
    ]
    assert show_predictions(UNLABELLED, PROBABILITIES, [7]).axes[0].get_title().startswith("7\n")


def test_ties_in_the_three_likeliest_go_to_the_lower_digit():
    assert top_three(np.full((1, 10), 0.1)) == ["0 10%, 1 10%, 2 10%"]


# Uncertainty


@given(st.integers(1, 40), st.integers(0, 999), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_uncertainty_stays_within_its_limits(n, seed, several):
    members = [random_digits(n, seed + i, noise=4)[1] for i in range(several)]
    table = uncertainty(np.mean(members, axis=0), members)
    assert table["one_minus_margin"].between(0, 1).all()
    assert table["entropy"].between(0, np.log(10) + 1e-9).all()
    assert (table["disagreement"] >= 0).all() and (
        table["disagreement"] <= table["entropy"] + 1e-9
    ).all()
    if several == 1:
        assert np.allclose(table["disagreement"], 0)


def test_a_single_recogniser_has_no_disagreement():
    assert list(uncertainty(PROBABILITIES)) == ["one_minus_margin", "entropy"]
    sure, lost = uncertainty(np.stack([np.eye(10)[3], np.full(10, 0.1)])).itertuples(index=False)
    assert tuple(sure) == (0, 0) and lost.one_minus_margin == 1
    assert np.isclose(lost.entropy, np.log(10))


# Corrections and writers


def test_corrections_are_what_compare_counts():
    answers = {
        str(seed): random_digits(40, 0, noise)[1].argmax(axis=1)
        for seed, noise in enumerate((2, 3, 4))
    }
    table = corrected_by(DIGITS.labels, answers)
    for first in answers:
        assert table.loc[first, first] == accuracy(DIGITS.labels, answers[first]).errors
        for second in set(answers) - {first}:
            assert (
                table.loc[first, second]
                == compare(DIGITS.labels, answers[first], answers[second]).only_second
            )
    with pytest.raises(DataError, match="shape"):
        corrected_by(DIGITS.labels, {"short": DIGITS.labels[1:]})


def test_writers_share_out_all_digits_and_all_errors():
    predicted = random_digits(40, 0, 4)[1].argmax(axis=1)
    table = by_writer(DIGITS, predicted)
    assert (
        table["digits"].sum() == 40
        and table["errors"].sum() == accuracy(DIGITS.labels, predicted).errors
    )
    assert (np.diff(table["errors"]) <= 0).all() and np.allclose(
        table["fraction"], table["errors"] / table["digits"]
    )
    with pytest.raises(DataError, match="no writers"):
        by_writer(Digits(DIGITS.images, DIGITS.labels), predicted)
    with pytest.raises(DataError, match="shape"):
        by_writer(DIGITS, predicted[1:])


# Judgements


def entry(i, votes=(5, 0, 0), **other):
    label = int(DIGITS.labels[i])
    return {
        "id": i,
        "given_original_label": label,
        "our_guessed_label": (label + 1) % 10,
        "mturk": dict(zip(("given", "guessed", "neither"), votes, strict=True)),
    } | other


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "votes, verdict",
    [
        ((5, 0, 0), "right"),
        ((3, 2, 0), "right"),
        ((2, 3, 0), "wrong"),
        ((0, 5, 0), "wrong"),
        ((2, 2, 1), "unclear"),
        ((0, 2, 3), "unclear"),
        ((0, 0, 5), "unclear"),
    ],
)
def test_a_verdict_is_the_majoritys(tmp_path, votes, verdict):
    judged = read_judgements(written(tmp_path / "judged.json", [entry(4, votes)]), DIGITS)
    assert judged.loc[4, "verdict"] == verdict
    labels, clear = corrected_labels(DIGITS, judged)
    assert (labels[4] == (DIGITS.labels[4] + 1) % 10) == (verdict == "wrong") and clear[4] == (
        verdict != "unclear"
    )
    rest = np.arange(40) != 4
    assert (labels == DIGITS.labels)[rest].all() and clear[rest].all()


def test_where_the_guess_is_the_label_its_votes_count_once(tmp_path):
    doubled = [
        entry(i, votes, our_guessed_label=int(DIGITS.labels[i]))
        for i, votes in enumerate([(5, 5, 0), (3, 3, 2), (2, 2, 3)])
    ]
    judged = read_judgements(written(tmp_path / "judged.json", doubled), DIGITS)
    assert judged["verdict"].tolist() == ["right", "right", "unclear"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[",
        "7",
        "null",
        '"text"',
        "{}",
        "[]",
        "[7]",
        "[{}]",
        [entry(40 - 1) | {"id": 40}],
        [entry(1, given_original_label="4")],
        [entry(1, our_guessed_label=12)],
        [entry(1, mturk={})],
        [entry(1, mturk=None)],
        [entry(1, (5, 0, -1))],
        [entry(1, id=1.5)],
        [entry(1, given_original_label=(int(DIGITS.labels[1]) + 3) % 10)],
        [entry(1), entry(1)],
        [entry(1, id=True)],
    ],
    ids=lambda content: str(content)[:30],
)
def test_a_file_of_another_form_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="judged.json"):
        read_judgements(written(tmp_path / "judged.json", content), DIGITS)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_judgements(tmp_path / "judged.json", DIGITS)


# Label issues


@given(st.integers(1, 60), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_label_issues_hold_every_digit_once_in_the_order_of_their_margins(n, seed):
    digits, probabilities = random_digits(n, seed, noise=3)
    table = label_issues(digits, probabilities)
    assert sorted(table.index) == list(range(n)) and (np.diff(table["margin"]) >= 0).all()
    assert (table["given"] != table["suggested"]).all() and table["margin"].between(-1, 1).all()
    wrong = misclassified(digits, probabilities).index
    assert set(table.index[: len(wrong)]) == set(wrong)  # a margin below 0 is a mistake


def test_changed_labels_are_found():
    digits, _ = random_digits(400)
    probabilities = (
        np.eye(10)[digits.labels] * 0.8 + np.random.default_rng(0).dirichlet(np.ones(10), 400) * 0.2
    )
    changed = np.arange(0, 400, 20)
    labels = digits.labels.copy()
    labels[changed] = (labels[changed] + 1) % 10
    table = label_issues(Digits(digits.images, labels), probabilities)
    assert set(table.index[:20]) == set(changed) and set(table.index[table["confident"]]) == set(
        changed
    )
    assert (table["suggested"].loc[changed] == digits.labels[changed]).all()


def test_label_issues_are_those_of_cleanlab():
    count = pytest.importorskip("cleanlab.count", reason="needs cleanlab")
    from cleanlab.rank import get_normalized_margin_for_each_label

    for seed in range(5):
        digits, probabilities = random_digits(600, seed, noise=2)
        table = label_issues(digits, probabilities).sort_index()
        joint, ids = count.compute_confident_joint(
            digits.labels, probabilities, calibrate=False, return_indices_of_off_diagonals=True
        )
        assert set(ids) == set(table.index[table["confident"]])
        margins = get_normalized_margin_for_each_label(digits.labels, probabilities)
        assert np.allclose(margins, (table["margin"] + 1) / 2)


def test_a_class_without_labels_raises_no_issue():
    labels = DIGITS.labels % 5
    table = label_issues(Digits(DIGITS.images, labels), PROBABILITIES)
    assert (
        not table["confident"]
        .loc[
            [i for i in range(40) if PROBABILITIES[i].argmax() > 4 and PROBABILITIES[i].max() > 0.9]
        ]
        .any()
    )


# Calibration


def test_ece_weighs_its_bins_by_their_digits():
    "Nine digits at confidence .95, all correct, and one at .55, wrong: (9 · .05 + .55) / 10."
    probabilities = np.full((10, 10), 0.05 / 9)
    probabilities[:, 0] = 0.95
    probabilities[9] = 0.45 / 9
    probabilities[9, 0] = 0.55
    assert np.isclose(ece(np.r_[np.zeros(9, int), 1], probabilities), 0.1)


def test_labels_of_other_digits_are_not_corrected():
    judged = pd.DataFrame({"given": DIGITS.labels[[3, 20]], "guessed": [1, 2],
                           "verdict": ["wrong", "unclear"]}, index=[3, 20])
    corrected_labels(DIGITS, judged)
    shifted = Digits(DIGITS.images, (DIGITS.labels + 5) % 10, "others")
    for other in (shifted, DIGITS[:10]):
        with pytest.raises(DataError, match="the digits that people judged"):
            corrected_labels(other, judged)
