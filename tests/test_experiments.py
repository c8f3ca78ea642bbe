"""The script behind nbs/experiments.csv: its rows, and one run of it."""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
import experiments

from digitrec.export import PRETRAINED, load_pretrained
from digitrec.recipe import RECIPES, registered
from digitrec.scores import accuracy, predict_with_tta
from digitrec.sources import load
from digitrec.training import Net

LOG = pd.read_csv(ROOT / "nbs/experiments.csv")
LISTED = {(one.group, one.name): one for one in experiments.ALL}


def test_every_row_is_a_run_that_the_script_lists():
    assert not LOG.duplicated(experiments.KEY).any()
    for row in LOG.itertuples():
        listed = LISTED[row.group, row.name]
        assert row.seed < listed.seeds and row.epochs == listed.recipe.epochs
        assert row.precision == listed.recipe.precision and row.kept == listed.kept


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_shipped_net_has_the_errors_of_its_row(name):
    "Up to one: the file has weights in half precision, and the row those of the training."
    card = load_pretrained(name).card
    group, seed = ("vote", 0) if name == "vote" else ("test", card["seeds"][0])
    rows = LOG[(LOG.group == group) & (LOG.name == card["recipe"]["name"]) & (LOG.seed == seed)]
    [errors] = rows.errors_tta
    assert card["MNIST test"]["given labels"]["errors"] == pytest.approx(errors, abs=1)
    if name != "vote":
        validation = LOG[(LOG.group == "log") & (LOG.name == card["recipe"]["name"])]
        by_seed = {str(row.seed): int(row.errors_tta) for row in validation.itertuples()}
        assert card["validation errors by seed"] == by_seed


@pytest.mark.parametrize("group, name", sorted(set(zip(LOG.group, LOG.name, strict=True))))
def test_a_row_has_the_parameters_of_its_net(group, name):
    rows, one = LOG[(LOG.group == group) & (LOG.name == name)], LISTED[group, name]
    recipes = [experiments.RECIPE_OF[voter] for voter in one.voters
               for _ in range(experiments.SEEDS[voter])] or [one.recipe]
    nets = [registered(recipe.net)() for recipe in recipes]
    assert set(rows.parameters) == {sum(net.count_params() for net in nets)}


def test_a_run_is_described_and_takes_the_place_of_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "CSV", tmp_path / "log.csv")
    train, test = load("digits")
    row = experiments.run(LISTED["test", "dash"], 1, train[:256], test[:100])
    experiments.add({**row, "errors": -1})
    experiments.add({**row, "seed": 0})
    experiments.add(row)
    table = pd.read_csv(tmp_path / "log.csv")
    assert list(table) == list(LOG) and table.seed.tolist() == [0, 1]
    assert table.errors.tolist() == [row["errors"]] * 2
    assert row["curve"] == str(row["errors"]) and 0 <= row["errors_tta"] <= 100


def test_a_vote_averages_all_nets_of_each_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("DIGITREC_RUNS", str(tmp_path))
    monkeypatch.setitem(experiments.SEEDS, "dash", 3)
    train, test = load("digits")
    one = experiments.Experiment("vote", "dash", RECIPES["dash"], voters=("dash",))
    row = experiments.run(one, 0, train[:256], test)
    nets = [Net.load(path) for path in tmp_path.iterdir()]
    assert sorted(net.seed for net in nets) == [0, 1, 2]
    probabilities = np.mean([net.predict_proba(test.images) for net in nets], axis=0)
    assert row["errors"] == accuracy(test.labels, probabilities.argmax(axis=1)).errors
    copies = [predict_with_tta(net.predict_proba, test.images, 1) for net in nets]
    five = np.mean(copies, axis=0).argmax(axis=1)  # the nets are stored without TTA of their own
    assert row["errors_tta"] == accuracy(test.labels, five).errors
    assert row["parameters"] == 3 * 35_802 and row["curve"] == row["epoch_seconds"] == ""


def test_only_missing_runs_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "CSV", tmp_path / "log.csv")
    pd.DataFrame([["log", "dash", 1]], columns=experiments.KEY).to_csv(tmp_path / "log.csv")
    assert [seed for _, seed in experiments.runs(["log"], "dash", False)] == [0, 2]
    assert [seed for _, seed in experiments.runs(["log"], "dash", True)] == [0, 1, 2]


def test_a_digit_is_held_out_in_one_fold(monkeypatch):
    table = load("digits")[0]
    monkeypatch.setattr(experiments, "load", lambda name: (table, None))
    folds = [experiments.fold(i) for i in range(5)]
    assert [len(train) + len(held) for train, held in folds] == [len(table)] * 5
    held = np.concatenate([held.images for _, held in folds])
    assert sorted(map(bytes, held)) == sorted(map(bytes, table.images))


def test_an_unknown_group_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments.py", "clasic"])
    with pytest.raises(SystemExit):
        experiments.main()
    assert "groups ['clasic']; expected some of" in capsys.readouterr().err
