"""What must be true of the real digits, where they are at hand."""
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from files import same

from digitrec.data import Digits, folds, split, write_submission
from digitrec.pictures import mnist_form
from digitrec.sources import load, read_csv, read_idx, read_npz

FOLDER = Path(os.environ.get("DIGITREC_DATA") or "nowhere")
pytestmark = pytest.mark.skipif(
    not all((FOLDER / name).is_dir() for name in ("mnist", "kaggle-format", "mnist-extras")),
    reason="DIGITREC_DATA names no folder with mnist, kaggle-format and mnist-extras")
COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
KAGGLE_COUNTS = [4132, 4684, 4177, 4351, 4072, 3795, 4137, 4401, 4063, 4188]
MD5 = {"train-images-idx3": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
       "train-labels-idx1": "d53e105ee54ea40749a09fcbcd1e9432",
       "t10k-images-idx3": "9fb629c4189551a2d022fa330f9573f3",
       "t10k-labels-idx1": "ec29112dd5afa0611ce80d1b7f02629c"}


@pytest.fixture(scope="module")
def mnist():
    return load(FOLDER / "mnist")


@pytest.fixture(scope="module")
def kaggle():
    return load(FOLDER / "kaggle-format")


@pytest.fixture(scope="module")
def everyone(mnist):
    "All 70,000, with their 836 writers."
    parts = [np.concatenate([getattr(part, field) for part in mnist])
             for field in ("images", "labels", "writers")]
    return Digits(parts[0], parts[1], "MNIST-70k", parts[2])


def test_mnist_is_mnist(mnist):
    train, test = mnist
    assert (len(train), len(test)) == (60_000, 10_000)
    assert np.bincount(train.labels).tolist() == COUNTS
    assert round(train.images.mean(), 3) == 33.318 and round(train.images.std(), 3) == 78.567
    assert len({*train.writers} | {*test.writers}) == 836 and not {*train.writers} & {*test.writers}


def test_the_idx_files_are_the_published_ones_and_hold_the_same_digits(mnist):
    paths = {name: FOLDER / "mnist" / f"{name}-ubyte.gz" for name in MD5}
    assert {name: hashlib.md5(path.read_bytes()).hexdigest() for name, path in paths.items()} == MD5
    parts = [read_idx(paths[f"{part}-images-idx3"], paths[f"{part}-labels-idx1"])
             for part in ("train", "t10k")]
    for idx, npz, known in zip(parts, read_npz(FOLDER / "mnist" / "mnist.npz"), mnist, strict=True):
        same(idx, known.images, known.labels), same(npz, known.images, known.labels)


def test_the_kaggle_format_table_has_the_competitions_shape(kaggle, everyone):
    train, test = kaggle
    assert (len(train), len(test)) == (42_000, 28_000) and test.labels is None
    assert np.bincount(train.labels).tolist() == KAGGLE_COUNTS
    images = sorted(image.tobytes() for part in kaggle for image in part.images)
    known = sorted(image.tobytes() for image in everyone.images)
    assert images == known, "not MNIST-70k, split another way"


def test_auto_takes_the_kaggle_format(kaggle, capsys):
    test = read_csv(FOLDER / "kaggle-format" / "test.csv.gz")
    assert test.images.tobytes() == kaggle[1].images.tobytes()
    train, _ = load()
    same(train, *[kaggle[0].images, kaggle[0].labels])
    printed = capsys.readouterr().out
    assert printed == "digitrec: 42,000 + 28,000 digits, Kaggle-format (kaggle-format)\n"


def test_a_submission_has_the_form_of_kaggles_sample(tmp_path, kaggle):
    path = write_submission(tmp_path / "submission.csv", np.arange(28_000) % 10, kaggle[1])
    files = path, FOLDER / "kaggle-format" / "sample_submission.csv"
    ours, sample = (np.loadtxt(file, str, delimiter=",") for file in files)
    assert ours.shape == sample.shape
    assert ours[0].tolist() == sample[0].tolist() and (ours[:, 0] == sample[:, 0]).all()


@pytest.mark.parametrize("k", [2, 5, 10])
def test_nobody_is_on_both_sides_of_a_fold(everyone, k):
    times = np.zeros(len(everyone), int)
    shares = np.bincount(everyone.labels) / len(everyone)
    for training, held in folds(everyone, k):
        assert not {*everyone.writers[training]} & {*everyone.writers[held]}
        assert np.abs(np.bincount(everyone.labels[held]) / len(held) - shares).max() < 0.005
        assert abs(len(held) * k / len(everyone) - 1) < 0.05
        times[held] += 1
    assert (times == 1).all()


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_nobody_is_on_both_sides_of_a_split(everyone, fraction):
    rest, held = split(everyone, fraction)
    assert not {*rest.writers} & {*held.writers} and len(rest) + len(held) == 70_000
    assert abs(len({*held.writers}) - 836 * fraction) <= 1
    assert abs(len(held) / 70_000 - fraction) < 0.03
    shares = [np.bincount(part.labels) / len(part) for part in (rest, held)]
    assert np.abs(shares[0] - shares[1]).max() < 0.015


def test_random_folds_would_mix_the_writers(everyone):
    unsigned = Digits(everyone.images, everyone.labels)
    training, held = folds(unsigned)[0]
    strangers = {*everyone.writers[held]} - {*everyone.writers[training]}
    assert len(strangers) < 10


def test_mnists_digits_are_in_mnists_form(mnist):
    for part in mnist:
        kept = np.array([np.array_equal(mnist_form(image), image) for image in part.images[:2000]])
        black = part.images[:2000].max(axis=(1, 2)) == 255  # a paler digit is darkened
        assert kept[black].mean() > 0.998 and kept[:2000].mean() > 0.89
    assert sum(np.array_equal(mnist_form(image), image) for image in mnist[0].images[:500]) >= 450
