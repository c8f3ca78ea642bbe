"""Splits: class shares kept, nobody on both sides, too few refused."""
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
        return st.lists(st.sampled_from(classes), max_size=60).map(lambda others: classes * k + others)
    classes = st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True)
    return classes.flatmap(more).flatmap(st.permutations)


def hands(labels, least):
    "Who wrote each digit: at least so many people."
    writers = st.lists(st.integers(0, 12), min_size=len(labels), max_size=len(labels))
    return writers.filter(lambda some: len({*some}) >= least)


@many
@given(st.integers(2, 5).flatmap(lambda k: st.tuples(st.just(k), patterns(k))), st.integers(0, 99))
def test_folds_partition_and_keep_class_shares(case, seed):
    k, labels = case
    cut = folds(labelled(labels), k, seed)
    assert len(cut) == k and sorted(np.concatenate([held for _, held in cut])) == list(range(len(labels)))
    for training, held in cut:
        assert sorted([*training, *held]) == list(range(len(labels)))
        assert training.dtype == held.dtype == np.int64
        off = np.bincount(labels, minlength=10) / k - np.bincount(np.array(labels)[held], minlength=10)
        assert np.abs(off).max() < 1
    again = folds(labelled(labels), k, seed)
    assert [[*map(list, pair)] for pair in again] == [[*map(list, pair)] for pair in cut]


@many
@given(st.integers(2, 4).flatmap(lambda k: st.tuples(st.just(k), patterns(k))), st.integers(0, 99), st.data())
def test_nobody_is_on_both_sides_of_a_fold(case, seed, draw):
    k, labels = case
    writers = draw.draw(hands(labels, k))
    digits = labelled(labels, writers)
    cut = folds(digits, k, seed)
    assert len(cut) == k and sorted(np.concatenate([held for _, held in cut])) == list(range(len(labels)))
    for training, held in cut:
        assert len(training) and len(held) and sorted([*training, *held]) == list(range(len(labels)))
        assert not {*digits.writers[training]} & {*digits.writers[held]}


@many
@given(patterns(2), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_split_keeps_class_shares_or_is_refused(labels, share, seed):
    try:
        rest, held = split(labelled(labels), share, seed)
    except DataError as error:
        wanted = np.ceil(share * len(labels))
        assert "possible" in error.expected and min(wanted, len(labels) - wanted) < len({*labels})
        return
    counts = np.bincount(labels, minlength=10)
    assert np.array_equal(np.bincount(rest.labels, minlength=10) + np.bincount(held.labels, minlength=10), counts)
    assert np.abs(np.bincount(held.labels, minlength=10) - share * counts).max() <= 2


@many
@given(patterns(2), st.floats(0.01, 0.99), st.integers(0, 99), st.data())
def test_nobody_is_on_both_sides_of_a_split(labels, share, seed, draw):
    writers = draw.draw(hands(labels, 2))
    n = len({*writers})
    if np.ceil(share * n) == n:
        refused("some", split, labelled(labels, writers), share, seed)
    else:
        rest, held = split(labelled(labels, writers), share, seed)
        assert not {*rest.writers} & {*held.writers} and {*rest.writers} | {*held.writers} == {*writers}
        assert len(rest) + len(held) == len(labels) and len({*held.writers}) == np.ceil(share * n)


@pytest.mark.parametrize(("digits", "k", "found"), [
    (Digits(IMAGES), 2, "no labels"), (labelled([]), 2, "no digits"), (labelled([1, 1, 2, 2, 2]), 3, "2 of digit 1"),
    (labelled([1] * 6, [4] * 6), 2, "1 writers"), (labelled([1] * 6, [4, 5] * 3), 3, "2 writers"),
    (labelled([1] * 6), 7, "6 of digit 1"),
    (labelled([1] * 6), 1, "k = 1"), (labelled([1] * 6), 0, "k = 0"), (labelled([1] * 6), -3, "k = -3"),
    (labelled([1] * 6), 2.5, "k = 2.5"), (labelled([1] * 6), "3", "k = 3"),
])
def test_too_few_digits_to_fold_are_refused(digits, k, found):
    assert found in refused("folds" if found.startswith("k") else digits.name, folds, digits, k).found


@pytest.mark.parametrize(("digits", "share", "found"), [
    (Digits(IMAGES), 0.2, "no labels"), (labelled([]), 0.2, "no digits"), (labelled([1, 1, 2]), 0.5, "1 of digit 2"),
    (labelled([1] * 6, [4] * 6), 0.5, "1 writers"), (labelled([1, 2] * 6), 0.01, "12 digits"),
    (labelled([1, 2] * 6), 0.99, "12 digits"),
    *((labelled([1] * 6), share, f"share = {share}") for share in (0, 1, -0.2, 1.5, float("nan"))),
])
def test_too_few_digits_to_split_are_refused(digits, share, found):
    assert found in refused("split" if found.startswith("share") else digits.name, split, digits, share).found
