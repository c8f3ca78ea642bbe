"""Files that several tests write: good ones, and the ways to spoil them."""
import io
import os
import re
import time
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from digitrec.data import DataError

PIXELS = [f"pixel{i}" for i in range(784)]
IMAGES = np.random.default_rng(0).choice([0, 0, 7, 99, 255], (3, 28, 28)).astype(np.uint8)
LABELS = np.array([3, 1, 9])
NUMBERS = np.column_stack([LABELS, IMAGES.reshape(3, 784)])
NOT_AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0,
                                 reason="root may do anything")
# Examples share a folder; one that takes longer than this hangs.
many = settings(max_examples=150, deadline=20_000,
                suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def contents(folder):
    "Each file in a folder, at any depth, and what it holds."
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


def table(numbers=NUMBERS, columns=("label", *PIXELS), end="\r\n"):
    "A table as Kaggle has it."
    rows = [columns, *np.asarray(numbers).tolist()]
    return "".join(",".join(map(str, row)) + end for row in rows).encode()


def idx(array):
    "An IDX file of bytes."
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**changes):
    "The entries of a small mnist.npz, but for some changes."
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:2], "y_test": LABELS[:2]}
    entries = {key: npy(array) for key, array in arrays.items()} | changes
    return {f"{key}.npy": entry for key, entry in entries.items()}


def zipped(entries, method=zipfile.ZIP_DEFLATED):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return archive.getvalue()


def in_zip(content, name="train.csv", method=zipfile.ZIP_DEFLATED):
    return zipped({name: content}, method)


SIGNS = [b"0", b"5", b",", b"\n", b"\r\n", b" ", b".", b"-", b'"', b"\0"]


@st.composite
def mutated(draw, content):
    "A good file with up to three faults: bytes changed, left out, put in, cut off or repeated."
    content = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        n = len(content)  # heads and tails hold most of what can go wrong
        first, last = draw(st.sampled_from([(0, n), (n // 2, n), (0, min(n, 150)),
                                            (max(0, n - 150), n)]))
        at, length = draw(st.integers(first, last)), draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["change", "leave out", "put in", "cut", "repeat"]))
        if kind == "change":
            content[at:at + 1] = draw(st.binary(min_size=1, max_size=1) | st.sampled_from(SIGNS))
        elif kind == "leave out":
            del content[at:at + length]
        elif kind == "put in":
            content[at:at] = draw(st.binary(min_size=1, max_size=4) | st.sampled_from(SIGNS))
        elif kind == "cut":
            del content[at:]
        else:
            content[at:at] = content[at:at + draw(st.sampled_from([length, 1000, n]))]
    return bytes(content)


def fair(error, name):
    "An error must name the file, the place, what was found and expected, and make sense."
    message = str(error)
    assert name in error.file and error.found and error.expected
    assert error.place in message
    assert message.endswith(f": found {error.found}; expected {error.expected}")
    found, expected = (re.match(r"(\d[\d,]*\d|\d)?", text).group()
                       for text in (error.found, error.expected))
    assert found != expected or not found, message


def refused(path, read, *args):
    "The DataError that a call raises."
    with pytest.raises(DataError) as caught:
        read(*args)
    fair(caught.value, Path(path).name)
    return caught.value


def error_message(function, *args, **kwargs):
    "The message of the error that a call raises."
    with pytest.raises((ValueError, ImportError)) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def attempt(path, read, *args):
    "What a call reads, or None where it refuses. Whatever else it does fails the test."
    try:
        return read(*args)
    except DataError as error:
        fair(error, Path(path).name)


def same(digits, images=IMAGES, labels=LABELS):
    assert digits.images.dtype == np.uint8 and np.array_equal(digits.images, images)
    assert digits.labels is None if labels is None else digits.labels.tolist() == list(labels)


@contextmanager
def frugal(megabytes=30, seconds=5):
    "What runs inside must be over soon, and take little memory."
    tracemalloc.start()
    try:
        start = time.monotonic()
        yield
        took, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert took < seconds and peak < megabytes, f"{took:.1f} s, {peak:.0f} MB"
