"""The script that trains two published ensembles: what it stores, and what it skips."""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
import published

from digitrec.data import split
from digitrec.sources import load
from digitrec.training import digest

REST, SCORING, TEST = published.shares("digits")


class Untrained:
    "Stands in for a net: it predicts at random."

    folder_, best_epoch_, seconds_ = None, 2, 3.5

    def __init__(self, recipe, seed, folder):
        self.recipe, self.seed = recipe, seed

    def fit(self, images, labels, groups=None, validation=None):
        self.images, self.validation = images, validation
        values = {"loss": [0.5, 0.4], "accuracy": [0.8, 0.9], "val_loss": [0.6, 0.5],
                  "val_accuracy": [0.7, 0.8], "seconds": [2.0, 1.5], "learning_rate": [1e-3] * 2}
        self.history_ = pd.DataFrame(values, index=pd.RangeIndex(1, 3, name="epoch"))
        trained.append(self)
        return self

    def predict_proba(self, images):
        return np.random.default_rng(self.seed).dirichlet(np.ones(10), len(images))


trained = []


@pytest.fixture
def nets(monkeypatch):
    "The nets that the script trains; none is trained in earnest."
    monkeypatch.setattr(published, "Net", Untrained)
    trained.clear()
    return trained


def run(folder, system, *options):
    published.main([system, "--source", "digits", "--out", str(folder), *options])


def contents(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize("system", published.MEMBERS)
def test_a_member_is_stored_with_its_history_and_facts(tmp_path, nets, system):
    run(tmp_path, system, "--members", "2")
    table = pd.read_csv(tmp_path / published.HISTORY[system])
    assert list(table) == published.COLUMNS and table["member"].tolist() == [1, 1, 2, 2]
    facts = pd.read_csv(tmp_path / f"{system}-members.csv", index_col="member")
    assert facts.index.tolist() == [1, 2] and facts["seed"].tolist() == [0, 1]
    assert (facts["n_train"] + facts["n_validation"] == len(REST)).all()
    assert (facts["precision"] == "bfloat16").all()
    assert (facts["scoring_digits"] == digest(SCORING.images, SCORING.labels)[:12]).all()
    for member, net in zip((1, 2), nets, strict=True):
        stored = np.load(tmp_path / f"{system}-{member:02}.npz")
        rolled = [np.roll(row, -label) for row, label in
                  zip(net.predict_proba(SCORING.images), SCORING.labels, strict=True)]
        expected = {"scoring": np.array(rolled), "test": net.predict_proba(TEST.images)}
        for part, probabilities in expected.items():
            assert stored[part].dtype == np.uint8 and stored[part].shape == probabilities.shape
            assert (stored[part].argmax(axis=1) == probabilities.argmax(axis=1)).all()
            assert np.abs(stored[part] / 255 - probabilities).max() < 0.01


def test_the_confusion_is_the_vote_s(tmp_path, nets):
    run(tmp_path, "s1", "--members", "2")
    vote = np.mean([net.predict_proba(SCORING.images) for net in nets], axis=0).argmax(axis=1)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (SCORING.labels, vote), 1)
    stored = pd.read_csv(tmp_path / "s1-confusion.csv")
    assert list(stored) == list("0123456789") and stored.to_numpy().sum() == len(SCORING)
    assert np.abs(stored.to_numpy() - counts).sum() <= 2  # a tie that rounding made


def test_stored_members_are_skipped_and_the_next_ones_are_added(tmp_path, nets):
    run(tmp_path, "s1", "--members", "1")
    before = contents(tmp_path)
    run(tmp_path, "s1", "--members", "1")
    assert len(nets) == 1
    after = contents(tmp_path)
    assert after.pop("s1-confusion.csv")[1] == before.pop("s1-confusion.csv")[1]
    assert after == before
    run(tmp_path, "s1", "--members", "3")
    assert [net.seed for net in nets] == [0, 1, 2]
    assert contents(tmp_path)["s1-01.npz"] == before["s1-01.npz"]
    table = pd.read_csv(tmp_path / "s1-folds.csv")
    assert table["member"].tolist() == [1, 1, 2, 2, 3, 3]


def test_a_member_stopped_while_it_was_stored_is_stored_once(tmp_path, nets):
    run(tmp_path, "s2", "--members", "2")
    (tmp_path / "s2-01.npz").unlink()  # it is written last
    run(tmp_path, "s2", "--members", "2")
    for name in ("s2-nets.csv", "s2-members.csv"):
        members = pd.read_csv(tmp_path / name)["member"].tolist()
        assert members == sorted(members) and members.count(1) == members.count(2)


def test_the_digits_of_a_fold_validate_and_only_frozen_digits_are_warped(tmp_path, nets):
    for system in ("s1", "s1-fresh"):
        run(tmp_path, system, "--members", "1")
    frozen, fresh = nets
    rows, held = published.splits(REST, 15, "plain", seed=42)[0]
    assert (fresh.images == REST.images[rows]).all()
    assert frozen.images.shape == fresh.images.shape and (frozen.images != fresh.images).any()
    for net in nets:
        assert (net.validation[0] == REST.images[held]).all()
        assert net.recipe.monitor == "val_accuracy" and net.recipe.epochs == 45
    assert frozen.recipe.augmentation is None and fresh.recipe.augmentation is not None


def test_the_scoring_digits_are_a_tenth_and_train_nothing():
    train, _ = load("digits")
    rest, scoring = split(train, 0.1)
    assert (SCORING.images == scoring.images).all() and (REST.labels == rest.labels).all()
    assert len(SCORING) == 90 and len(REST) == 808


def test_the_predicted_digit_stays_the_highest():
    probabilities = np.full((4, 10), 0.0)
    probabilities[0, [3, 7]] = 0.4999, 0.5001
    probabilities[1, 9] = 1.0
    probabilities[2] = 0.1
    probabilities[2, 5] += 1e-9
    probabilities[3, :4] = 0.25, 0.25, 0.2501, 0.2499
    stored = published.to_bytes(probabilities)
    assert stored.argmax(axis=1).tolist() == [7, 9, 5, 2] and stored[1, 9] == 255


@pytest.mark.parametrize("options", [["s1", "--members", "16"], ["s2", "--members", "0"], ["s3"]])
def test_other_members_and_systems_are_refused(options, tmp_path):
    with pytest.raises(SystemExit):
        published.main([*options, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_it_trains_in_earnest(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "RUNS", tmp_path / "runs")
    run(tmp_path / "out", "s1", "--members", "1", "--epochs", "1")
    names = {"s1-01.npz", "s1-folds.csv", "s1-members.csv", "s1-confusion.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_members_scored_on_other_digits_are_refused(tmp_path, nets, monkeypatch):
    run(tmp_path, "s1", "--members", "1")
    before = contents(tmp_path)
    monkeypatch.setattr(published, "shares", lambda source: (REST, SCORING[::-1], TEST))
    with pytest.raises(SystemExit, match="found scoring_digits"):
        run(tmp_path, "s1", "--members", "2")
    assert contents(tmp_path) == before and len(nets) == 1
