"""Ensembles: killed and resumed, trained side by side, saved and refused, nonsense settings."""
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
import pandas as pd
import pytest
from files import contents
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError

from digitrec.data import DataError, Digits, split
from digitrec.sources import load

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec import ensemble as ensembles
from digitrec import training
from digitrec.ensemble import ENSEMBLE_JSON, SPLITS, Ensemble, plot_folds, selection_bias, splits
from digitrec.recipe import RECIPES, Augmentation
from digitrec.training import NET_JSON, WEIGHTS

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
TINY = replace(RECIPES["few"], name="tiny", epochs=1)
TRAIN, TEST = load("digits")
FIRST = TRAIN[:96]
DIGITS = FIRST.images, FIRST.labels
PROBE = TEST.images[:50]


def ensemble(folder=None, **changes):
    settings = {"recipe": TINY, "k": 2, "folder": folder, "verbose": False} | changes
    return Ensemble(**settings)


def members(folder):
    "The folders of an ensemble's members, by their seeds"
    return sorted(path.parent for path in folder.glob(f"*/{NET_JSON}"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A fitted ensemble of two, and the folder that holds it"
    folder = tmp_path_factory.mktemp("saved")
    return SimpleNamespace(ensemble=ensemble(folder).fit(*DIGITS), folder=folder)


@pytest.fixture
def copy(saved, tmp_path):
    "A folder with an ensemble that may be spoilt"
    return shutil.copytree(saved.folder, tmp_path / "copy")


@pytest.fixture
def no_training(monkeypatch):
    "Whoever trains fails."
    monkeypatch.setattr(training, "_train_epoch", lambda *args: pytest.fail("it was trained"))


# Killed and resumed

KILLED = """
import dataclasses, sys
from digitrec.recipe import RECIPES
from digitrec.sources import load
from digitrec.ensemble import Ensemble

train, _ = load("digits")
recipe = dataclasses.replace(RECIPES["few"], epochs=4)
ensemble = Ensemble(recipe, k=2, seed=1, folder=sys.argv[1], verbose=False)
ensemble.fit(train.images[:240], train.labels[:240])
"""


def trained(folder, until=None):
    "Train an ensemble in a process of its own; kill it as soon as a file is there."
    pipes = {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", KILLED, folder], **pipes) as child:
        while until and child.poll() is None:
            if list(folder.glob(until)):
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        errors = child.communicate()[1]
    assert child.returncode == (-signal.SIGKILL if until else 0), errors


def times(paths):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@POSIX
def test_an_ensemble_killed_within_members_resumes_to_the_same(tmp_path):
    trained(tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    trained(folder, until="few-seed1-*/state.npz")        # within the first member
    assert not list(folder.glob(f"*/{NET_JSON}"))
    trained(folder, until="few-seed2-*/state.npz")        # within the second
    finished = times(folder.glob("few-seed1-*/net.*"))
    assert len(finished) == 2 and not (folder / ENSEMBLE_JSON).exists()
    trained(folder)
    assert times(folder.glob("few-seed1-*/net.*")) == finished
    found, expected = Ensemble.load(folder), Ensemble.load(tmp_path / "undisturbed")
    assert np.array_equal(found.oof_, expected.oof_)
    columns = ["epochs", "accuracy", "errors", "n"]
    assert found.scores_[columns].equals(expected.scores_[columns])
    assert set(contents(folder)) == set(contents(tmp_path / "undisturbed"))


def test_finished_members_are_not_trained_again(copy, saved, no_training):
    before = times(copy.rglob("net.*"))
    for name in (ENSEMBLE_JSON, "oof.npy"):  # it was stopped before it could write these
        (copy / name).unlink()
    again = ensemble(copy).fit(*DIGITS)
    assert np.array_equal(again.oof_, saved.ensemble.oof_) and times(copy.rglob("net.*")) == before
    assert np.array_equal(Ensemble.load(copy).oof_, saved.ensemble.oof_)


@pytest.mark.parametrize("changes", [
    {"seed": 1}, {"split": "plain"}, {"k": 3}, {"recipe": replace(TINY, learning_rate=1e-3)}],
    ids=["seed", "split", "k", "recipe"])
def test_another_ensemble_in_the_folder_trains_members_of_its_own(copy, changes):
    before = {path: content for path, content in contents(copy).items() if "net." in path}
    other = ensemble(copy, **changes).fit(*DIGITS)
    assert before.items() <= contents(copy).items()
    names = [member.folder_ for member in other.members_]
    assert len(members(copy)) == 2 + len(names) and set(names) <= set(members(copy))
    assert np.array_equal(Ensemble.load(copy).oof_, other.oof_)


def test_more_members_of_the_same_ensemble_use_those_that_are_there(tmp_path):
    ensemble(tmp_path, k=3, max_members=1).fit(*DIGITS)
    before = times(tmp_path.rglob("net.*"))
    whole = ensemble(tmp_path, k=3).fit(*DIGITS)
    assert len(before) == 2 and before.items() <= times(tmp_path.rglob("net.*")).items()
    assert len(whole.members_) == 3 and not np.isnan(whole.oof_).any()


def test_a_damaged_member_is_refused_and_not_overwritten(copy):
    weights = members(copy)[1] / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    before = contents(copy)
    with pytest.raises(DataError, match="seed1"):
        ensemble(copy).fit(*DIGITS)
    assert contents(copy) == before


# Splits and out-of-fold probabilities

@pytest.mark.parametrize("kind", SPLITS)
def test_members_train_on_the_splits_and_nothing_else(kind):
    fitted = ensemble(split=kind, seed=4).fit(*DIGITS)
    for i, (rows, held) in enumerate(splits(FIRST, 2, kind, 4)):
        member = fitted.members_[i]
        assert member.seed == 4 + i and not set(rows) & set(held)
        training_digits = FIRST[rows]
        assert member.about_["trained on"] == training.digest(
            training_digits.images, training_digits.labels)
        if len(held):
            assert (fitted.oof_[held] == member.predict_proba(FIRST.images[held])).all()
    assert np.isnan(fitted.oof_).all() == (kind == "seeds")
    assert ("accuracy" in fitted.scores_) == (kind != "seeds")


def test_scores_count_the_errors_of_the_out_of_fold_predictions(saved):
    fitted = saved.ensemble
    wrong = fitted.oof_.argmax(axis=1) != FIRST.labels
    assert fitted.scores_.errors.sum() == wrong.sum() and fitted.scores_.n.sum() == 96
    for i, (_, held) in enumerate(splits(FIRST, 2)):
        assert fitted.scores_.errors[i + 1] == wrong[held].sum()
        assert fitted.scores_.accuracy[i + 1] == pytest.approx(1 - wrong[held].mean())
    assert f"{wrong.sum()} errors of 96" in str(fitted)


def test_stratified_splits_keep_class_fractions_and_plain_ones_need_not():
    digits = TRAIN[:400]
    counts = {kind: [np.bincount(digits.labels[held], minlength=10)
                     for _, held in splits(digits, 4, kind)] for kind in ("stratified", "plain")}
    assert np.ptp(counts["stratified"], axis=0).max() <= 1
    assert np.ptp(counts["plain"], axis=0).max() > 1


def test_groups_stay_in_one_fold():
    writers = np.arange(96) // 6
    fitted = ensemble().fit(*DIGITS, groups=writers)
    digits = Digits(*DIGITS, "digits", writers)
    for member, (rows, held) in zip(fitted.members_, splits(digits, 2), strict=True):
        assert not set(writers[rows]) & set(writers[held])
        assert member.about_["trained on"] == training.digest(*_pair(digits[rows]))
        assert member.about_["validated on"] == training.digest(*_pair(digits[held]))


def _pair(digits):
    return digits.images, digits.labels


def test_groups_reach_the_members_own_validation_split():
    writers = np.arange(96) // 4
    recipe = replace(TINY, monitor="val_loss", validation_split=0.25)
    fitted = ensemble(recipe=recipe).fit(*DIGITS, groups=writers)
    digits = Digits(*DIGITS, "digits", writers)
    for member, (rows, _) in zip(fitted.members_, splits(digits, 2), strict=True):
        rest, watched = split(digits[rows], 0.25, member.seed)
        assert not set(rest.writers) & set(watched.writers)
        assert member.about_["trained on"] == training.digest(*_pair(rest))


def test_a_recipe_that_chooses_its_best_epoch_does_not_look_at_the_fold():
    recipe = replace(TINY, monitor="val_loss", validation_split=0.2,
                     augmentation=Augmentation(shift=1))
    digits = TRAIN[:200]
    fitted = ensemble(recipe=recipe).fit(*_pair(digits))
    for member, (rows, held) in zip(fitted.members_, splits(digits, 2), strict=True):
        rest, watched = split(digits[rows], 0.2, member.seed)
        assert member.about_["trained on"] == training.digest(*_pair(rest))
        assert member.about_["validated on"] == training.digest(*_pair(watched))
        assert (fitted.oof_[held] == member.predict_proba(digits.images[held])).all()


def test_a_vote_is_the_mean_of_the_members_probabilities(saved):
    each = [member.predict_proba(PROBE) for member in saved.ensemble.members_]
    assert np.allclose(saved.ensemble.predict_proba(PROBE), np.mean(each, axis=0))
    assert (each[0] != each[1]).any()


def test_selection_bias_is_the_gain_of_choosing_by_the_fold(saved):
    table = selection_bias(saved.ensemble)
    assert table["last epoch"].iloc[:2].tolist() == saved.ensemble.scores_.accuracy.tolist()
    assert len(plot_folds(saved.ensemble).axes) == 2


def test_a_best_epoch_before_the_last_is_a_selection_bias(saved, monkeypatch):
    for member, values in zip(saved.ensemble.members_, ([0.5, 0.9, 0.8], [0.1, 0.2, 0.3]),
                              strict=True):
        rows = {"val_accuracy": values, "val_loss": [3.0, 1.6, 1.7]}
        monkeypatch.setattr(member, "history_", pd.DataFrame(rows, index=[1, 2, 3]))
    bias = selection_bias(saved.ensemble)["selection bias"]
    assert bias.tolist() == pytest.approx([0.1, 0.0, 0.05])
    low, high = plot_folds(saved.ensemble).axes[0].get_ylim()
    assert low < 1.6 and high > 1.7  # a loss may be above 1


@pytest.mark.parametrize("function", [plot_folds, selection_bias])
def test_members_without_validation_digits_have_no_curves_of_folds(function):
    with pytest.raises(ValueError, match="without validation digits"):
        function(ensemble(split="seeds").fit(*DIGITS))


@pytest.mark.parametrize("function", [plot_folds, selection_bias])
def test_members_that_chose_their_epoch_by_other_digits_did_not_watch_the_fold(function):
    recipe = replace(TINY, monitor="val_loss", validation_split=0.3)
    with pytest.raises(ValueError, match="without validation digits"):
        function(ensemble(recipe=recipe).fit(*DIGITS))


# Side by side

@pytest.mark.parametrize("allowed, expected", [
    (None, ["0", "1", "0"]), ("3", ["3", "3", "3"]), ("2,5", ["2", "5", "2"]), ("-1", ["-1"] * 3)])
def test_workers_share_the_gpus_that_they_may_use(monkeypatch, allowed, expected):
    monkeypatch.setattr(ensembles.glob, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    monkeypatch.setattr(ensembles.keras.backend, "backend", lambda: "jax")
    taken = []
    for worker in range(3):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if allowed is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
        ensembles._take_a_share(worker, 3)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == expected


def test_members_trained_side_by_side_are_those_trained_in_turn(saved, capfd):
    both = ensemble(n_jobs=2).fit(*DIGITS)
    assert capfd.readouterr().out == ""
    assert np.allclose(both.oof_, saved.ensemble.oof_, atol=1e-3)
    expected = saved.ensemble.predict_proba(PROBE)
    assert np.allclose(both.predict_proba(PROBE), expected, atol=1e-3)
    assert list(both.scores_) == list(saved.ensemble.scores_)
    assert both.scores_.index.tolist() == [1, 2]


def test_only_a_verbose_ensemble_prints(copy, capfd):
    ensemble(copy).fit(*DIGITS)
    assert capfd.readouterr().out == ""
    ensemble(copy, verbose=True).fit(*DIGITS)
    rows = [line.split(",")[:2] for line in capfd.readouterr().out.splitlines()]
    assert rows == [["tiny", " member 1"], ["tiny", " member 2"]]


# Saved ensembles

def unreadable(folder):
    "An ensemble's folder must be refused, with a file in it named, and stay as it is."
    before = contents(folder)
    with pytest.raises(DataError) as caught:
        Ensemble.load(folder)
    assert str(folder) in caught.value.file and contents(folder) == before


def test_a_truncated_description_is_refused(copy):
    text = (copy / ENSEMBLE_JSON).read_bytes()
    for end in range(0, len(text) - 2, 10):
        (copy / ENSEMBLE_JSON).write_bytes(text[:end])
        unreadable(copy)


STRANGE = [None, True, -1, 0, 1.5, "x", [], {}, [[]], {"x": 1}]


@pytest.mark.parametrize("key, values", {
    "": [value for value in STRANGE if not isinstance(value, dict)] + [{}],
    "members": [*STRANGE, 3, 10**9, 10**400, [".."], ["../x"], ["/"], [1], [""], ["."]],
    "k": STRANGE, "split": STRANGE, "seed": [None, -1, 1.5, "x", [], {}],
    "max_members": [-1, 0, 1.5, "x", [], {}], "scores": STRANGE,
}.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_description_with_something_strange_in_it_is_refused(copy, key, values):
    good, failed = json.loads((copy / ENSEMBLE_JSON).read_text()), []
    for value in values:
        (copy / ENSEMBLE_JSON).write_text(json.dumps({**good, key: value} if key else value))
        try:
            unreadable(copy)
        except BaseException as error:  # pytest's own is no Exception
            failed.append(f"{value!r}: {type(error).__name__} {error}"[:120])
    assert not failed


@pytest.mark.parametrize("missing", [
    "oof.npy", ENSEMBLE_JSON, "first", "second", f"second/{NET_JSON}", f"first/{WEIGHTS}"])
def test_an_ensemble_that_is_not_whole_is_refused(copy, missing):
    first, second = (str(path) for path in members(copy))
    path = copy / missing.replace("first", first).replace("second", second)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    unreadable(copy)


def as_npy(path, array):
    np.save(path, array, allow_pickle=True)
    return path.read_bytes()


def test_out_of_fold_probabilities_that_are_none_are_refused(copy, tmp_path):
    path, failed, marker, spare = copy / "oof.npy", [], tmp_path / "ran", tmp_path / "a.npy"

    class Hostile:
        def __reduce__(self):
            return open, (str(marker), "w")

    good, zeros = path.read_bytes(), np.zeros((96, 10))
    np.savez(tmp_path / "a.npz", zeros)
    endless = as_npy(spare, zeros).replace(b"(96, 10), ", b"(10**13,),")[:200]
    for name, content in {
        "nothing": b"", "a bit": good[:50], "half": good[: len(good) // 2],
        "all but a byte": good[:-1], "a word": b"x" * 500,
        "pickled": as_npy(spare, np.array([Hostile()], dtype=object)),
        "a zip": b"PK\5\6" + bytes(18), "npz": (tmp_path / "a.npz").read_bytes(),
        "a bad zip": b"PK\x03\x04" + bytes(100), "words": as_npy(spare, np.array(["x"])),
        "other shape": as_npy(spare, np.zeros((96, 9))),
        "one number": as_npy(spare, np.array(1.0)),
        "whole numbers": as_npy(spare, np.zeros((96, 10), int)),
        "too large": endless.replace(b"10**13", b"999999999999"),
    }.items():
        path.write_bytes(content)
        try:
            unreadable(copy)
        except BaseException as error:  # pytest's own is no Exception
            failed.append(f"{name}: {type(error).__name__} {error}"[:120])
    assert not failed and not marker.exists()


def test_an_ensemble_saved_elsewhere_is_the_same(saved, tmp_path):
    again = Ensemble.load(saved.ensemble.save(tmp_path / "new" / "folder"))
    assert np.array_equal(again.oof_, saved.ensemble.oof_)
    assert again.scores_.equals(saved.ensemble.scores_)
    assert (again.predict_proba(PROBE) == saved.ensemble.predict_proba(PROBE)).all()
    assert again.recipe == TINY and again.n_features_in_ == 784
    assert (again.k, again.split, again.seed, again.max_members) == (2, "stratified", 0, None)


def test_an_ensemble_that_is_saved_elsewhere_still_loads_where_it_was_fitted(copy, tmp_path):
    fitted = ensemble(copy).fit(*DIGITS)
    fitted.save(tmp_path / "elsewhere")
    for folder in (copy, tmp_path / "elsewhere"):
        assert np.array_equal(Ensemble.load(folder).oof_, fitted.oof_)


def test_an_ensemble_without_a_folder_can_be_saved(tmp_path):
    fitted = ensemble(max_members=1).fit(*DIGITS)
    again = Ensemble.load(fitted.save(tmp_path / "later"))
    assert (again.predict_proba(PROBE) == fitted.predict_proba(PROBE)).all()
    assert np.array_equal(again.oof_, fitted.oof_, equal_nan=True)


# Nonsense

FEW = FIRST.images[:40], FIRST.labels[:40]


@pytest.mark.parametrize("images, labels, groups", [
    (FEW[0] / 255, FEW[1], None), (None, FEW[1], None),
    ([FEW[0][0], FEW[0][1][:5]], FEW[1], None), (FEW[0], FEW[1] + 5, None),
    (FEW[0], FEW[1][:-1], None), (FEW[0], None, None), (FEW[0], FEW[1] / 1, None),
    (FEW[0][:0], FEW[1][:0], None), (FEW[0][:1], FEW[1][:1], None),
    (*FEW, np.zeros(40, int)), (*FEW, np.arange(39)), (*FEW, np.arange(40) / 1), (*FEW, "x"),
], ids=["floats", "none", "uneven", "high labels", "few labels", "no labels", "float labels",
        "nothing", "one digit", "one writer", "few writers", "float writers", "a word"])
def test_an_ensemble_refuses_what_is_no_digits_and_writes_nothing(tmp_path, images, labels, groups):
    with pytest.raises(DataError):
        ensemble(tmp_path / "run").fit(images, labels, groups)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [
    {"recipe": None}, {"recipe": "few"}, {"k": 1}, {"k": 1.5}, {"k": "x"}, {"k": True},
    {"split": "random"}, {"split": None}, {"split": []}, {"seed": -1}, {"seed": 1.5},
    {"seed": "x"}, {"seed": None}, {"seed": 2**40}, {"seed": -1, "split": "plain"},
    {"seed": -1, "split": "seeds"}, {"max_members": 0}, {"max_members": -1},
    {"max_members": 1.5}, {"max_members": "x"}, {"n_jobs": 0}, {"n_jobs": "x"},
], ids=str)
def test_an_ensemble_refuses_settings_that_cannot_be_and_writes_nothing(tmp_path, changes):
    with pytest.raises(ValueError) as caught:
        ensemble(tmp_path / "run", **changes).fit(*DIGITS)
    assert not isinstance(caught.value, DataError) and not (tmp_path / "run").exists()


def test_more_folds_than_digits_are_refused(tmp_path):
    with pytest.raises(DataError):
        ensemble(tmp_path / "run", k=97).fit(*DIGITS)
    assert not (tmp_path / "run").exists()


def test_a_digit_that_a_member_would_never_see_is_refused(tmp_path):
    sevens = TRAIN.labels == 7
    digits = TRAIN[np.r_[np.flatnonzero(~sevens)[:40], np.flatnonzero(sevens)[:1]]]
    for kind, complaint in {"stratified": "1 of digit 7", "plain": "7"}.items():
        with pytest.raises(DataError, match=complaint):
            ensemble(tmp_path / "run", split=kind).fit(*_pair(digits))
    assert not (tmp_path / "run").exists()
    assert len(splits(digits, 2, "seeds")) == 2


# The contract of a recogniser

def test_an_ensemble_honours_the_recognisers_contract(saved):
    fresh = clone(saved.ensemble)
    assert fresh.get_params() == saved.ensemble.get_params() and is_classifier(fresh)
    for function in (fresh.predict, fresh.predict_proba, fresh.save):
        with pytest.raises(NotFittedError):
            function(TEST.images[:3])
    images = TEST.images[:200]
    probabilities = saved.ensemble.predict_proba(images)
    assert probabilities.shape == (200, 10) and np.allclose(probabilities.sum(axis=1), 1)
    assert (saved.ensemble.predict(images) == probabilities.argmax(axis=1)).all()
    assert saved.ensemble.predict_proba(images[:0]).shape == (0, 10)
    alone = saved.ensemble.predict_proba(images[150:151])[0]
    assert np.allclose(alone, probabilities[150], atol=1e-5)
    rows = saved.ensemble.predict_proba(images.reshape(200, 784))
    assert (rows == probabilities).all() and saved.ensemble.n_features_in_ == 784
    with pytest.raises(DataError):
        saved.ensemble.predict(images[0])


def test_the_fields_of_the_recipe_are_parameters():
    fresh = ensemble().set_params(recipe__epochs=3, k=4)
    assert (fresh.recipe.epochs, fresh.k) == (3, 4)
    assert fresh.get_params()["recipe__epochs"] == 3
    with pytest.raises(ValueError, match="rate"):
        fresh.set_params(recipe__rate=3)


def test_a_failed_first_member_leaves_no_fitted_ensemble():
    wild = replace(TINY, optimizer="sgd", learning_rate=1e37, batch_size=48)
    fresh = ensemble(recipe=wild)
    with pytest.raises(FloatingPointError):
        fresh.fit(*DIGITS)
    with pytest.raises(NotFittedError):
        fresh.predict(PROBE)


def test_settings_may_be_numpys(tmp_path):
    fitted = ensemble(tmp_path, k=np.int64(2), seed=np.int64(1)).fit(*DIGITS)
    loaded = Ensemble.load(tmp_path)
    assert np.array_equal(loaded.oof_, fitted.oof_) and (loaded.k, loaded.seed) == (2, 1)


def test_out_of_fold_probabilities_of_another_training_are_refused(copy):
    oof = np.load(copy / "oof.npy")
    np.save(copy / "oof.npy", oof[::-1])
    with pytest.raises(DataError, match="oof.npy with another SHA-256"):
        Ensemble.load(copy)
