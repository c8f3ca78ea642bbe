"""Digits, checks, shifted copies, JSON and errors: what every other module stands on."""
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from files import IMAGES, LABELS, refused, same, written
from hypothesis import given
from hypothesis import strategies as st

from digitrec.data import (
    DataError,
    Digits,
    check_images,
    check_integers,
    flatten,
    read_json,
    shifted_copies,
    write_json,
)

ROWS = IMAGES.reshape(3, 784)


# Errors

def test_an_error_says_where_and_survives_a_journey_between_processes():
    error = DataError("train.csv", "'256'", "a whole number", "line 3")
    assert str(error) == "train.csv, line 3: found '256'; expected a whole number"
    assert isinstance(error, ValueError)
    error = DataError("train.csv", "nothing", "digits")
    assert str(error) == "train.csv: found nothing; expected digits" and error.place == ""
    error = DataError("train.csv", "'256'", "a whole number", "line 3")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(again) == str(error) and again.place == "line 3" and type(again) is DataError


# Digits

def test_digits_slice_and_mask_like_an_array():
    digits = Digits(IMAGES, LABELS, "three", np.array([5, 5, 8]))
    same(digits[1:], IMAGES[1:], LABELS[1:]), same(digits[[2, 0]], IMAGES[[2, 0]], LABELS[[2, 0]])
    same(digits[LABELS > 2], IMAGES[[0, 2]], [3, 9]), same(digits[:0], IMAGES[:0], [])
    for row in (2, -1, np.int64(2)):
        same(digits[row], IMAGES[2:], [9])
        assert digits[row].writers.tolist() == [8] and digits[row].name == "three"
    with pytest.raises(IndexError):
        digits[3]


def test_digits_without_labels_and_writers_stay_without():
    bare = Digits(IMAGES)[1:]
    assert bare.labels is bare.writers is None and len(bare) == 2
    assert repr(bare) == "Digits('digits': 2 images, no labels)"
    known = Digits(IMAGES, LABELS, "three", np.array([5, 5, 8]))
    assert repr(known) == "Digits('three': 3 images, labels, 2 writers)"


def test_digits_give_floats_in_two_shapes():
    digits = Digits(IMAGES)
    assert digits.flat.dtype == digits.nhwc.dtype == np.float32
    assert digits.flat.shape == (3, 784) and digits.nhwc.shape == (3, 28, 28, 1)
    assert np.array_equal(digits.flat, (ROWS / 255).astype(np.float32)) and digits.flat.max() == 1
    assert np.array_equal(digits.nhwc.reshape(3, 784), digits.flat)
    assert digits[:0].flat.shape == (0, 784) and digits[:0].nhwc.shape == (0, 28, 28, 1)


def test_digits_survive_pickling_and_cannot_be_changed():
    digits = Digits(IMAGES, LABELS)
    same(pickle.loads(pickle.dumps(digits)))  # noqa: S301
    with pytest.raises(AttributeError):
        digits.labels = None


def test_a_list_of_images_becomes_an_array():
    same(Digits(list(IMAGES), LABELS)[LABELS > 2], IMAGES[[0, 2]], [3, 9])


# Flat rows, as scikit-learn's tools pass them

@pytest.mark.parametrize("rows",
                         [ROWS, ROWS.tolist, np.asfortranarray(ROWS), ROWS[::-1][::-1], ROWS[:0]],
                         ids=type)
def test_flat_rows_are_images(rows):
    rows = np.array(rows(), np.uint8) if callable(rows) else rows
    images = check_images(rows)
    assert images.dtype == np.uint8 and np.array_equal(images, IMAGES[:len(rows)])
    same(Digits(rows, LABELS[:len(rows)]), IMAGES[:len(rows)], LABELS[:len(rows)])
    assert np.array_equal(flatten(rows), flatten(images))
    assert flatten(rows).shape == (len(rows), 784)


@pytest.mark.parametrize("images", [
    IMAGES / 255, IMAGES.astype(int), IMAGES > 0, IMAGES[0], IMAGES[..., None], IMAGES[:, 1:],
    ROWS[:, 1:], ROWS[0],
    ROWS / 255, ROWS.astype(int), np.uint8(3), [], [[1], [1, 2]], [IMAGES[0], IMAGES[0][1:]], None,
    "a five",
    np.zeros((3, 784, 1), np.uint8), np.zeros((3, 1, 784), np.uint8),
    np.zeros((2, 1568), np.uint8)],
    ids=lambda images: f"{getattr(images, 'dtype', images)} {getattr(images, 'shape', '')}")
def test_what_is_no_images_is_refused(images):
    assert "(n, 28, 28) or (n, 784)" in refused("images", check_images, images).expected
    refused("my digits, images", Digits, images, None, "my digits")
    refused("images", flatten, images)


# Whole numbers

@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint64, ">i2", ">u4"])
def test_whole_numbers_of_any_dtype_become_int64(dtype):
    checked = check_integers(LABELS.astype(dtype), "labels", 3, 9)
    assert checked.dtype == np.int64 and checked.tolist() == LABELS.tolist()


@pytest.mark.parametrize(("values", "found", "place"), [
    ([4, 5], "(2,)", ""), ([4, 5, 6, 7], "(4,)", ""), ([[4], [5], [6]], "(3, 1)", ""),
    (4, "()", ""),
    ([4.0, 5, 6], "float64", ""), ([True, False, True], "bool", ""), (["4", "5", "6"], "U", ""),
    ([None] * 3, "object", ""),
    ([[4], [5, 6], 7], "unequal", ""), ([4, 5, 10], "10", "index 2"),
    ([4, -1, 10], "-1", "index 1"),
    (np.array([4, 5, 266], np.uint16), "266", "index 2")], ids=repr)
def test_what_is_not_whole_numbers_is_refused(values, found, place):
    error = refused("labels", check_integers, values, "labels", 3, 9)
    assert found in error.found and error.place == place
    assert found in refused("three, labels", Digits, IMAGES, values, "three").found


@pytest.mark.parametrize("writers", [[1, 2], [1.0, 2, 3], [1, 2, -3]], ids=repr)
def test_writers_are_checked(writers):
    refused("three, writers", Digits, IMAGES, None, "three", writers)


# Shifted copies

@given(st.integers(0, 27), st.integers(0, 27), st.integers(0, 28))
def test_a_dot_moves_as_far_as_said_and_leaves_the_paper(y, x, pixels):
    dot = np.zeros((1, 28, 28), np.uint8)
    dot[0, y, x] = 255
    copies = shifted_copies(dot, pixels)
    assert len(copies) == 5 and np.array_equal(copies[0], dot)
    for copy, (down, across) in zip(copies, [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)],
                                    strict=True):
        there = y + down * pixels, x + across * pixels
        assert copy.shape == dot.shape and copy.dtype == np.uint8
        on_paper = all(0 <= side < 28 for side in there)
        assert np.argwhere(copy[0]).tolist() == ([[*there]] if on_paper else [])


@pytest.mark.parametrize("pixels", [-1, 29, 1.5, "1", None])
def test_a_shift_out_of_range_is_a_bad_setting(pixels):
    with pytest.raises(ValueError, match="from 0 to 28") as caught:
        shifted_copies(IMAGES, pixels)
    assert not isinstance(caught.value, DataError)


# JSON

def test_json_is_read_as_it_was_written(tmp_path):
    about = {"seed": 3, "name": "Zahlen für Übung ✓", "scores": [0.5, None, True],
             "nested": {"a": []}}
    for path in (tmp_path / "new" / "about.json", str(tmp_path / "about.json")):
        write_json(path, about)
        assert read_json(path) == about
    assert os.listdir(tmp_path / "new") == ["about.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = written(tmp_path / "about.json", b"{}")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_bytes() == b"{}" and os.listdir(tmp_path) == ["about.json"]


@pytest.mark.parametrize("expected", [None, "the manifest that a run writes last"])
def test_a_reader_of_json_says_what_the_file_should_be(tmp_path, expected):
    said = [expected] if expected else []
    error = refused("nothing.json", read_json, tmp_path / "nothing.json", *said)
    assert "no such file" in error.found and error.expected == (expected or "a JSON file")
    for content in (b"", b'{"seed": ', b"\xff\xfe", b"[" * 100_000):
        error = refused("broken.json", read_json, written(tmp_path / "broken.json", content), *said)
        assert "no JSON" in error.found and error.expected == (expected or "a JSON file")
    refused(tmp_path, read_json, tmp_path, *said)


# The door

def test_the_module_needs_only_numpy():
    heavy = ["keras", "tensorflow", "jax", "torch", "sklearn", "scipy", "pandas", "matplotlib",
             "PIL", "urllib.request"]
    script = ("import sys, digitrec.data;"
              f"print([name for name in {heavy} if name in sys.modules])")
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
