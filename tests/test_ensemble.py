"""Ensembles: killed and gone on with, trained side by side, kept and refused, told nonsense. The chapter shows the rest."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from files import contents
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError

from digitrec.data import DataError, load

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec import training
from digitrec.augmentation import Augmentation
from digitrec.cnn import RECIPES
from digitrec.ensemble import MANIFEST, Ensemble, cuts, load_ensemble, save_ensemble

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
TINY = replace(RECIPES["few"], name="tiny", epochs=1)
TRAIN, TEST = load("digits")
SOME = TRAIN[:96]
learned = SOME.images, SOME.labels


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "An ensemble of two, fitted, and the folder that holds it."
    folder = tmp_path_factory.mktemp("kept")
    return SimpleNamespace(ensemble=Ensemble(TINY, k=2, folder=folder, quiet=True).fit(*learned), folder=folder)


@pytest.fixture
def copy(kept, tmp_path):
    "A folder with an ensemble that may be spoilt."
    return shutil.copytree(kept.folder, tmp_path / "copy")


# Killed, and gone on with

KILLED = """
import dataclasses, sys
from digitrec.cnn import RECIPES
from digitrec.data import load
from digitrec.ensemble import Ensemble

train, _ = load("digits")
recipe = dataclasses.replace(RECIPES["few"], epochs=6)
print("begin", flush=True)
Ensemble(recipe, k=3, seed=1, folder=sys.argv[1], quiet=True).fit(train.images[:240], train.labels[:240])
"""


def trained(folder, until=None):
    "Train an ensemble in a process of its own; kill it as soon as a file is there."
    with subprocess.Popen([sys.executable, "-c", KILLED, folder], stderr=subprocess.PIPE, text=True) as child:
        while until and child.poll() is None:
            if until.exists():
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        errors = child.communicate()[1]
    assert child.returncode == (-signal.SIGKILL if until else 0), errors


@POSIX
def test_an_ensemble_killed_between_and_within_members_is_that_of_an_undisturbed_run(tmp_path):
    trained(tmp_path / "undisturbed")
    folder, first = tmp_path / "killed", tmp_path / "killed" / "member-00"
    trained(folder, until=first / "state.npz")  # within the first
    assert not (first / "net.json").exists()
    trained(folder, until=first / "net.json")   # after it
    finished = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first.glob("net.*")}
    assert len(finished) == 2
    trained(folder, until=folder / "member-01" / "state.npz")  # within the second
    assert not (folder / MANIFEST).exists()
    trained(folder)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first.glob("net.*")} == finished
    found, expected = load_ensemble(folder), load_ensemble(tmp_path / "undisturbed")
    assert np.array_equal(found.oof_, expected.oof_)
    assert found.scores_.drop(columns="seconds").equals(expected.scores_.drop(columns="seconds"))
    assert set(contents(folder)) == set(contents(tmp_path / "undisturbed"))


def test_finished_members_are_not_trained_again(copy, kept, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("net.*")}
    for name in (MANIFEST, "oof.npy"):  # it was stopped before it could write these
        (copy / name).unlink()
    monkeypatch.setattr(training, "_epoch", lambda run: pytest.fail("a member was trained"))
    again = Ensemble(TINY, k=2, folder=copy, quiet=True).fit(*learned)
    assert np.array_equal(again.oof_, kept.ensemble.oof_) and {path: path.stat().st_mtime_ns for path in before} == before
    assert np.array_equal(load_ensemble(copy).oof_, kept.ensemble.oof_)


@pytest.mark.parametrize("how", [{"seed": 1}, {"cut": "plain"}, {"k": 3}, {"recipe": replace(TINY, rate=1e-3)}],
                         ids=["seed", "cut", "k", "recipe"])
def test_another_ensembles_folder_is_refused_and_stays_as_it_is(copy, how):
    before = contents(copy)
    with pytest.raises(DataError, match="member-00.*a folder of its own"):
        Ensemble(**{"recipe": TINY, "k": 2, "folder": copy, "quiet": True, **how}).fit(*learned)
    assert contents(copy) == before


def test_a_damaged_member_is_refused_and_not_trained_over(copy):
    weights = copy / "member-01" / "net.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1])
    before = contents(copy)
    with pytest.raises(DataError, match="member-01"):
        Ensemble(TINY, k=2, folder=copy, quiet=True).fit(*learned)
    assert contents(copy) == before


# Side by side

def test_members_trained_side_by_side_are_those_trained_in_turn(kept, capfd):
    both = Ensemble(TINY, k=2, n_jobs=2, quiet=True).fit(*learned)
    assert capfd.readouterr().out == ""
    assert np.allclose(both.oof_, kept.ensemble.oof_, atol=1e-3)
    assert np.allclose(both.predict_proba(TEST.images[:50]), kept.ensemble.predict_proba(TEST.images[:50]), atol=1e-3)
    assert list(both.scores_) == list(kept.ensemble.scores_) and both.scores_.index.tolist() == [1, 2]


def test_only_a_loud_ensemble_speaks(copy, capfd):
    Ensemble(TINY, k=2, folder=copy, quiet=True).fit(*learned)
    assert capfd.readouterr().out == ""
    Ensemble(TINY, k=2, folder=copy).fit(*learned)
    assert [line.split(",")[:2] for line in capfd.readouterr().out.splitlines()] == [["tiny", " member 1"], ["tiny", " member 2"]]


# Kept ensembles

def unreadable(folder):
    "An ensemble's folder must be refused, with a file in it named, and stay as it is."
    before = contents(folder)
    with pytest.raises(DataError) as caught:
        load_ensemble(folder)
    assert str(folder) in caught.value.file and contents(folder) == before


def test_a_truncated_manifest_is_refused(copy):
    text = (copy / MANIFEST).read_bytes()
    for end in range(0, len(text) - 2, 10):
        (copy / MANIFEST).write_bytes(text[:end])
        unreadable(copy)


STRANGE = [None, True, -1, 0, 1.5, "x", [], {}, [[]], {"x": 1}]


@pytest.mark.parametrize("key, values", {
    "": [value for value in STRANGE if not isinstance(value, dict)] + [{}],
    "members": [*(value for value in STRANGE if value is not True), 3, 10**9, 10**400],
    "k": STRANGE, "cut": STRANGE, "seed": [None, -1, 1.5, "x", [], {}], "at_most": [-1, 0, 1.5, "x", [], {}], "scores": STRANGE,
}.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_manifest_with_something_strange_in_it_is_refused(copy, key, values):
    good, failed = json.loads((copy / MANIFEST).read_text()), []
    for value in values:
        (copy / MANIFEST).write_text(json.dumps({**good, key: value} if key else value))
        try:
            unreadable(copy)
        except BaseException as error:  # pytest's own is no Exception
            failed.append(f"{value!r}: {type(error).__name__} {error}"[:120])
    assert not failed


@pytest.mark.parametrize("missing", [
    "oof.npy", MANIFEST, "member-00", "member-01", "member-01/net.json", "member-00/net.weights.h5"])
def test_an_ensemble_that_is_not_whole_is_refused(copy, missing):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    unreadable(copy)


def test_out_of_fold_probabilities_that_are_none_are_refused(copy, tmp_path):
    path, failed = copy / "oof.npy", []
    good, marker = path.read_bytes(), tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return open, (str(marker), "w")

    def as_npz():
        np.savez(tmp_path / "a.npz", np.zeros((96, 10)))
        return (tmp_path / "a.npz").read_bytes()

    def as_npy(array):
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        return (tmp_path / "a.npy").read_bytes()

    endless = as_npy(np.zeros((96, 10))).replace(b"(96, 10), ", b"(10**13,),")[:200].replace(b"10**13", b"999999999999")
    for name, content in {
        "nothing": b"", "a bit": good[:50], "half": good[: len(good) // 2], "all but a byte": good[:-1], "a word": b"x" * 500,
        "pickled": as_npy(np.array([Hostile()], dtype=object)), "a zip": b"PK\5\6" + bytes(18), "npz": as_npz(),
        "a bad zip": b"PK\x03\x04" + bytes(100), "words": as_npy(np.array(["x"])), "other shape": as_npy(np.zeros((96, 9))),
        "one number": as_npy(np.array(1.0)), "whole numbers": as_npy(np.zeros((96, 10), int)), "too large": endless,
    }.items():
        path.write_bytes(content)
        try:
            unreadable(copy)
        except BaseException as error:  # pytest's own is no Exception
            failed.append(f"{name}: {type(error).__name__} {error}"[:120])
    assert not failed and not marker.exists()


def test_an_ensemble_kept_elsewhere_is_the_same(kept, tmp_path):
    again = load_ensemble(save_ensemble(kept.ensemble, tmp_path / "new" / "folder"))
    assert np.array_equal(again.oof_, kept.ensemble.oof_) and again.scores_.equals(kept.ensemble.scores_)
    assert (again.predict_proba(TEST.images[:50]) == kept.ensemble.predict_proba(TEST.images[:50])).all()
    assert again.recipe == TINY and (again.k, again.cut, again.seed, again.at_most) == (2, "stratified", 0, None)


# Nonsense

FEW = SOME.images[:40], SOME.labels[:40]


@pytest.mark.parametrize("images, labels, writers", [
    (FEW[0] / 255, FEW[1], None), (FEW[0].reshape(40, 784), FEW[1], None), (None, FEW[1], None),
    ([FEW[0][0], FEW[0][1][:5]], FEW[1], None), (FEW[0], FEW[1] + 5, None), (FEW[0], FEW[1][:-1], None),
    (FEW[0], None, None), (FEW[0], FEW[1] / 1, None), (FEW[0][:0], FEW[1][:0], None), (FEW[0][:1], FEW[1][:1], None),
    (*FEW, np.zeros(40, int)), (*FEW, np.arange(39)), (*FEW, np.arange(40) / 1), (*FEW, "x"),
], ids=["floats", "rows", "none", "uneven", "high labels", "few labels", "no labels", "float labels", "nothing", "one digit",
        "one writer", "few writers", "float writers", "a word"])
def test_an_ensemble_refuses_what_is_no_digits_and_writes_nothing(tmp_path, images, labels, writers):
    with pytest.raises(DataError):
        Ensemble(TINY, k=2, folder=tmp_path / "run", quiet=True).fit(images, labels, writers)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", [
    {"recipe": None}, {"recipe": "few"}, {"k": 1}, {"k": 1.5}, {"k": "x"}, {"k": 97}, {"cut": "random"}, {"cut": None},
    {"cut": []}, {"seed": -1}, {"seed": 1.5}, {"seed": "x"}, {"seed": None}, {"seed": 2**40},
    {"seed": -1, "cut": "plain"}, {"seed": -1, "cut": "seeds"},
    {"at_most": 0}, {"at_most": -1}, {"at_most": 1.5}, {"at_most": "x"}, {"n_jobs": 0}, {"n_jobs": "x"},
], ids=str)
def test_an_ensemble_refuses_settings_that_cannot_be_and_writes_nothing(tmp_path, how):
    with pytest.raises(DataError):
        Ensemble(**{"recipe": TINY, "k": 2, "folder": tmp_path / "run", "quiet": True, **how}).fit(*learned)
    assert not (tmp_path / "run").exists()


def test_a_digit_that_a_member_would_never_see_is_refused(tmp_path):
    digits = TRAIN[np.r_[np.flatnonzero(TRAIN.labels != 7)[:40], np.flatnonzero(TRAIN.labels == 7)[:1]]]
    for cut, complaint in {"stratified": "1 of digit 7", "plain": "7"}.items():
        with pytest.raises(DataError, match=complaint):
            Ensemble(TINY, k=2, cut=cut, folder=tmp_path / "run", quiet=True).fit(digits.images, digits.labels)
    assert not (tmp_path / "run").exists()
    assert len(cuts(digits, 2, "seeds")) == 2


# The contract of a recogniser

def test_an_ensemble_keeps_the_recognisers_contract(kept):
    ensemble = clone(kept.ensemble)
    assert ensemble.get_params() == kept.ensemble.get_params() and is_classifier(ensemble)
    for ask in (ensemble.predict, ensemble.predict_proba):
        with pytest.raises(NotFittedError):
            ask(TEST.images[:3])
    several = kept.ensemble.predict_proba(TEST.images[:200])
    assert several.shape == (200, 10) and np.allclose(several.sum(axis=1), 1)
    assert (kept.ensemble.predict(TEST.images[:200]) == several.argmax(axis=1)).all()
    assert kept.ensemble.predict_proba(TEST.images[:0]).shape == (0, 10)
    assert np.allclose(kept.ensemble.predict_proba(TEST.images[150:151])[0], several[150], atol=1e-5)
    with pytest.raises(DataError):
        kept.ensemble.predict(TEST.images[0])


def test_a_recipe_that_keeps_its_best_epoch_does_not_look_at_the_fold():
    patient = replace(TINY, best="loss", held_out=0.2, augmentation=Augmentation(shift=1))
    digits = TRAIN[:200]
    ensemble = Ensemble(patient, k=2, quiet=True).fit(digits.images, digits.labels)
    for member, (rows, held) in zip(ensemble.members_, cuts(digits, 2), strict=True):
        rest, watched = training.split(digits[rows], 0.2, member.seed)
        assert member.about_["learned"] == training.digest(rest.images, rest.labels)
        assert member.about_["validated"] == training.digest(watched.images, watched.labels)
        assert (ensemble.oof_[held] == member.predict_proba(digits.images[held])).all()
