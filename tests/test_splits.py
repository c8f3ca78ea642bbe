"""Splits: class frequencies kept, nobody on both sides, too few refused."""
import numpy as np
import pytest
from files import IMAGES, many, refused
from hypothesis import given
from hypothesis import strategies as st

from digitrec.data import DataError, Digits, folds, split

def labelled(labels, writers=None):
    writers = None if writers is None else np.array(writers)
    return Digits(np.zeros((len(labels), 28, 28), np.uint8), np.array(labels, int), "some", writers)


def patterns(k):
    "Labels with at least k digits of each class."
    def more(classes):
        more_labels = st.lists(st.sampled_from(classes), max_size=60)
        return more_labels.map(lambda labels: classes * k + labels)
    classes = st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True)
    return classes.flatmap(more).flatmap(st.permutations)


def hands(labels, least):
    "Who wrote each digit: at least so many people."
    writers = st.lists(st.integers(0, 12), min_size=len(labels), max_size=len(labels))
    return writers.filter(lambda some: len({*some}) >= least)


@many
@given(st.integers(2, 5).flatmap(lambda k: st.tuples(st.just(k), patterns(k))), st.integers(0, 99))
def test_folds_partition_and_keep_class_frequencies(case, seed):
    k, labels = case
    pairs = folds(labelled(labels), k, seed)
    assert len(pairs) == k
    assert sorted(np.concatenate([held for _, held in pairs])) == list(range(len(labels)))
    for training, held in pairs:
        assert sorted([*training, *held]) == list(range(len(labels)))
        assert training.dtype == held.dtype == np.int64
        counts = np.bincount(np.array(labels)[held], minlength=10)
        off = np.bincount(labels, minlength=10) / k - counts
        assert np.abs(off).max() < 1
    again = folds(labelled(labels), k, seed)
    assert [[*map(list, pair)] for pair in again] == [[*map(list, pair)] for pair in pairs]


@many
@given(st.integers(2, 4).flatmap(lambda k: st.tuples(st.just(k), patterns(k))), st.integers(0, 99),
       st.data())
def test_nobody_is_on_both_sides_of_a_fold(case, seed, draw):
    k, labels = case
    writers = draw.draw(hands(labels, k))
    digits = labelled(labels, writers)
    pairs = folds(digits, k, seed)
    assert len(pairs) == k
    assert sorted(np.concatenate([held for _, held in pairs])) == list(range(len(labels)))
    for training, held in pairs:
        assert len(training) and len(held)
        assert sorted([*training, *held]) == list(range(len(labels)))
        assert not {*digits.writers[training]} & {*digits.writers[held]}


@many
@given(patterns(2), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_split_keeps_class_frequencies_or_is_refused(labels, fraction, seed):
    try:
        rest, held = split(labelled(labels), fraction, seed)
    except DataError as error:
        wanted = np.ceil(fraction * len(labels))
        assert "possible" in error.expected and min(wanted, len(labels) - wanted) < len({*labels})
        return
    counts = np.bincount(labels, minlength=10)
    both = np.concatenate([rest.labels, held.labels])
    assert np.array_equal(np.bincount(both, minlength=10), counts)
    assert np.abs(np.bincount(held.labels, minlength=10) - fraction * counts).max() <= 2


@many
@given(patterns(2), st.floats(0.01, 0.99), st.integers(0, 99), st.data())
def test_nobody_is_on_both_sides_of_a_split(labels, fraction, seed, draw):
    writers = draw.draw(hands(labels, 2))
    n = len({*writers})
    if np.ceil(fraction * n) == n:
        refused("some", split, labelled(labels, writers), fraction, seed)
    else:
        rest, held = split(labelled(labels, writers), fraction, seed)
        assert not {*rest.writers} & {*held.writers}
        assert {*rest.writers} | {*held.writers} == {*writers}
        assert len(rest) + len(held) == len(labels)
        assert len({*held.writers}) == np.ceil(fraction * n)


@pytest.mark.parametrize(("digits", "k", "found"), [
    (Digits(IMAGES), 2, "no labels"), (labelled([]), 2, "no digits"),
    (labelled([1, 1, 2, 2, 2]), 3, "2 of digit 1"),
    (labelled([1] * 6, [4] * 6), 2, "1 writers"), (labelled([1] * 6, [4, 5] * 3), 3, "2 writers"),
    (labelled([1] * 6), 7, "6 of digit 1"),
])
def test_too_few_digits_to_fold_are_refused(digits, k, found):
    assert found in refused(digits.name, folds, digits, k).found


@pytest.mark.parametrize(("digits", "fraction", "found"), [
    (Digits(IMAGES), 0.2, "no labels"), (labelled([]), 0.2, "no digits"),
    (labelled([1, 1, 2]), 0.5, "1 of digit 2"),
    (labelled([1] * 6, [4] * 6), 0.5, "1 writers"), (labelled([1, 2] * 6), 0.01, "12 digits"),
    (labelled([1, 2] * 6), 0.99, "12 digits"),
])
def test_too_few_digits_to_split_are_refused(digits, fraction, found):
    assert found in refused(digits.name, split, digits, fraction).found


@pytest.mark.parametrize("function", [folds, split])
@pytest.mark.parametrize("setting", [0, 1, -3, -0.2, 1.5, 2.5, float("nan")])
def test_a_setting_out_of_range_is_no_fault_of_the_data(function, setting):
    for digits in (labelled([1] * 6), labelled([1] * 6, [4, 5] * 3)):
        with pytest.raises(ValueError, match=f"{setting}") as caught:
            function(digits, setting)
        assert not isinstance(caught.value, DataError)


@pytest.mark.parametrize("k", ["3", 3.0, None])
def test_folds_are_counted_in_whole_numbers(k):
    with pytest.raises(ValueError, match="k must be a whole number"):
        folds(labelled([1] * 6), k)


def test_a_split_needs_no_more_than_digits():
    rest, held = split(labelled([1, 2] * 50))
    assert (len(rest), len(held)) == (80, 20) and np.bincount(held.labels).tolist() == [0, 10, 10]
    again = split(labelled([1, 2] * 50), fraction=0.2, seed=0)
    assert again[1].labels.tolist() == held.labels.tolist()


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, 2**32])
def test_a_seed_is_a_whole_number(seed):
    digits = labelled(np.arange(10).repeat(4))
    for make in (split, folds):
        with pytest.raises(ValueError, match="seed must be a whole number from 0"):
            make(digits, seed=seed)


@pytest.mark.parametrize("fraction", ["0.2", None, 0, 1, float("nan")])
def test_a_fraction_is_a_number_between_0_and_1(fraction):
    with pytest.raises(ValueError, match="fraction must be above 0 and below 1"):
        split(labelled(np.arange(10).repeat(4)), fraction)
