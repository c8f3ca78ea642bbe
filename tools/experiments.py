"""Train what chapters 08, 09 and 14 compare, and write a row a run to nbs/experiments.csv.

    python tools/experiments.py                # every run that the file lacks
    python tools/experiments.py classic        # those of a group
    python tools/experiments.py classic --name "no dropout" --again   # these once more

The groups "classic" and "log" choose: they train on MNIST's training digits without a sixth of the
writers, whose digits score. "reduced" scores nets of "log" on the same digits with fewer pixels.
"test" trains on all 60,000 and is scored on the 10,000 test digits. Its runs are interleaved: first
all recipes with seed 0, then all with seed 1, so that other work on the machine meets them alike.
"embedded" scores nets of "test" on scikit-learn's digits. "race" has what chapter 14 compares with
them: two recipes as they were until 22 November 2026. (Until then, the non-digits were blank paper,
noise, mixed quarters, and pairs of digits squeezed to half their width. So these rows can be rerun
in digits and settings, and not in non-digits.) "vote" averages all nets of each of its recipes.
"folds" trains on four fifths of the Kaggle-format table, and scores the digits of the last fifth;
its seed is the fold.
"""
import argparse
import os
import platform
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from digitrec.backend import choose_backend
from digitrec.data import Digits, atomic_write, split
from digitrec.recipe import RECIPES, Recipe, register
from digitrec.sources import load

choose_backend(verbose=False)
import keras

from digitrec import cnn
from digitrec.ensemble import splits
from digitrec.nets import predict_model
from digitrec.robustness import distort
from digitrec.scores import accuracy, nll, predict_with_tta
from digitrec.training import Net

layers = keras.layers
CSV = Path(__file__).resolve().parent.parent / "nbs/experiments.csv"
KEY = ["group", "name", "seed"]


@dataclass(frozen=True)
class Experiment:
    "One line of the log: a recipe, and how many seeds"
    group: str
    name: str
    recipe: Recipe
    seeds: int = 3
    kept: str = "no"
    callbacks: tuple = ()
    voters: tuple = ()  # recipes, for a vote of all nets of each


# Chapter 08, "Why this net?": the classic net with one part changed, on 10,000 digits

def classic(filters=(32, 64), pool=layers.MaxPooling2D, dropout=(0.25, 0.5), dense=128, norm=False):
    "The layers of S4's net, with other settings"
    yield from (keras.Input((28, 28)), layers.Rescaling(1 / 255), layers.Reshape((28, 28, 1)))
    for i, n in enumerate(filters):
        stride = 2 if pool is None and i == len(filters) - 1 else 1
        yield layers.Conv2D(n, 3, strides=stride, activation=None if norm else "relu")
        if norm:
            yield from (layers.BatchNormalization(), layers.Activation("relu"))
    if pool:
        yield pool()
    yield from (layers.Dropout(dropout[0]), layers.Flatten())
    if dense:
        yield from (layers.Dense(dense, activation="relu"), layers.Dropout(dropout[1]))
    yield layers.Dense(10, activation="softmax")


SHORT = replace(RECIPES["classic-2018"], precision="bfloat16")


def changed(name, kept="no", **settings):
    "The classic net with other layers"
    def build():
        return keras.Sequential(list(classic(**settings)))

    build.__name__ = "classic: " + name
    register(build)
    return Experiment("classic", name, replace(SHORT, name=name, net=build.__name__), kept=kept)


def trained(name, **settings):
    "The classic net, trained otherwise"
    return Experiment("classic", name, replace(SHORT, name=name, **settings))


CLASSIC = [
    changed("as published", kept="yes"),
    changed("16 and 32 filters", filters=(16, 32)),
    trained("Adam, rate .001", optimizer="adam", learning_rate=0.001),
    trained("Nadam, rate .001", optimizer="nadam", learning_rate=0.001),
    trained("Adadelta, rate .001", learning_rate=0.001),
    changed("no dropout", dropout=(0, 0)),
    changed("one convolution", filters=(32,)),
    changed("no dense 128", dense=0),
    changed("dense 32", dense=32),
    changed("batch norm", norm=True),
    changed("average pooling", pool=partial(layers.AveragePooling2D, 2)),
    trained("Adam, one-cycle to .003", optimizer="adam", learning_rate=0.003,
            schedule="one-cycle"),
    changed("stride 2, no pooling", pool=None),
]


# Our own nets: what was tried on held-out writers

def ours(name, recipe, kept="no", **settings):
    return Experiment("log", name, replace(RECIPES[recipe], name=name, **settings), kept=kept)


def unpooled(filters, size):
    "Build a net like M5 and M7 of An et al., 2020 (arXiv:2008.10400), without padding and pooling."
    convolutions = [layer for n in filters for layer in cnn._lean(n, size)]
    return keras.Sequential(
        [*cnn._input_layers(), *convolutions, cnn._Flatten(), cnn._Output()])


@register
def m5_net():
    return unpooled((32, 64, 96, 128, 160), 5)


@register
def m7_net():
    return unpooled((48, 96, 144, 192), 7)


LIGHT, HEAVY = RECIPES["dash"].augmentation, RECIPES["sprint"].augmentation
IN_BFLOAT16 = {"precision": "bfloat16"}
FINE = {**IN_BFLOAT16, "augmentation": replace(RECIPES["large"].augmentation, coarse=1)}
PLAIN = {**IN_BFLOAT16, "augmentation": HEAVY, "outlier_exposure": 0}
LOG = [
    ours("dash", "dash", kept="yes"),
    ours("dash, no warps", "dash", augmentation=None),
    ours("dash, batches of 256, 2 epochs", "dash", batch_size=256, epochs=2),
    ours("sprint, 1 epoch, light warps", "sprint", epochs=1, augmentation=LIGHT),
    ours("sprint, light warps", "sprint", augmentation=LIGHT),
    ours("sprint", "sprint", kept="yes"),
    ours("sprint, elastic .8", "sprint", augmentation=replace(HEAVY, elastic=0.8)),
    ours("sprint, outliers .04", "sprint", outlier_exposure=0.04),
    ours("sprint, 12 epochs", "sprint", epochs=12),
    replace(ours("large", "large", kept="yes", **IN_BFLOAT16), seeds=5),
    replace(ours("large, no coarse digits", "large", **FINE), seeds=5),
    ours("large, digits alone", "large", **PLAIN),
    ours("large, digits alone, 30 epochs", "large", **{**PLAIN, "epochs": 30}),
    ours("large, digits alone, light warps", "large", **{**PLAIN, "augmentation": LIGHT}),
    ours("large, digits alone, elastic 1", "large",
         **{**PLAIN, "augmentation": replace(HEAVY, elastic=1)}),
    ours("record", "record", kept="yes", **IN_BFLOAT16),
    replace(ours("record, 5 × 5 without pooling", "record", net="m5_net", **IN_BFLOAT16), seeds=1),
    replace(ours("record, 7 × 7 without pooling", "record", net="m7_net", **IN_BFLOAT16), seeds=1),
]
for name in ("small", "tiny"):
    coarse = replace(RECIPES[name].augmentation, coarse=3)
    LOG += [replace(ours(name, name, kept="yes"), seeds=5),
            replace(ours(name + ", coarse digits", name, augmentation=coarse), seeds=5)]


# Every net by its own recipe, on the test digits

LONGER = replace(RECIPES["standardised-2017-as-written"], name="standardised-2017, longer",
                 epochs=4, learning_rate=0.1, schedule="constant")
KEPT = replace(RECIPES["standardised-2017-as-written"], name="standardised-2017, rate kept",
               schedule="constant")  # .01 in both epochs
RATES = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch == 0 else 0.001)
THIRTY = replace(RECIPES["cv-2020"], epochs=30)  # as in Chris Deotte's study of this net
TEST = [Experiment("test", name, RECIPES[name], seeds, "yes") for name, seeds in {
    "dash": 10, "tiny": 5, "sprint": 5, "small": 5, "first-2020": 3,
    "standardised-2017-as-written": 3, "standardised-2017": 3, "classic-2018": 3}.items()]
TEST += [Experiment("test", KEPT.name, KEPT, 2),
         Experiment("test", LONGER.name, LONGER, 1, callbacks=(RATES,)),
         Experiment("test", "cv-2020", THIRTY, 3, "yes")]
TEST += [Experiment("test", name, replace(RECIPES[name], **IN_BFLOAT16), 5, "yes")
         for name in ("large", "record")]


@register
def wider_net():
    "The net of `record` with one and a half times the channels"
    return cnn.large_net(96)


WIDER = replace(RECIPES["record"], name="wider", net="wider_net", epochs=10, **IN_BFLOAT16)
TEST += [Experiment("test", "wider", WIDER, 4),
         Experiment("test", "wider, 12 epochs", replace(WIDER, epochs=12), 1),
         Experiment("test", "large, no coarse digits", replace(RECIPES["large"], **FINE), 5)]
RECIPE_OF = {experiment.name: experiment.recipe for experiment in TEST}
SEEDS = {experiment.name: experiment.seeds for experiment in TEST}
RACE = [Experiment("race", name, replace(RECIPES[name], outlier_exposure=0.04, augmentation=warps),
                   3, "yes") for name, warps in {"tiny": LIGHT, "small": HEAVY}.items()]

# Votes of nets trained on all digits

VOTE = [Experiment("vote", " and ".join(names), RECIPE_OF[names[0]], 1, voters=names)
        for names in (("large",), ("record",), ("wider",), ("large", "record"),
                      ("large", "record", "wider"))]

# Nets that differ in coarse digits, on digits of fewer pixels, and on those of other hands

OF_LARGE = ("large", "large, no coarse digits")
WITH_AND_WITHOUT = (*OF_LARGE, "small", "small, coarse digits", "tiny", "tiny, coarse digits")
REDUCED = [replace(each, group="reduced") for each in LOG if each.name in WITH_AND_WITHOUT]
EMBEDDED = [replace(each, group="embedded") for each in TEST if each.name in OF_LARGE]

FOLDS = [Experiment("folds", "record", RECIPE_OF["record"], 5, "yes")]

FINAL = ("test", "race", "vote")  # groups that train on all digits
ALL = [*TEST, *RACE, *VOTE, *FOLDS, *CLASSIC, *LOG, *REDUCED, *EMBEDDED]


def untrained(experiment: Experiment, seed: int, folder) -> list[Net]:
    "The nets of a run: one, or all of each recipe that votes"
    runs = [(experiment.recipe, seed)]
    if experiment.voters:
        runs = [(RECIPE_OF[name], i) for name in experiment.voters for i in range(SEEDS[name])]
    return [Net(replace(recipe, tta=0), i, folder, verbose=False, callbacks=experiment.callbacks)
            for recipe, i in runs]  # without TTA: curves count errors with one copy


def score(nets: list[Net], digits, with_tta: bool) -> dict:
    "Errors with one copy of each digit, and with five if wanted; the loss with one"
    predictors = [partial(predict_model, net.model_) for net in nets]
    once = np.mean([predict(digits.images) for predict in predictors], axis=0)
    row = {"errors": accuracy(digits.labels, once.argmax(axis=1)).errors, "errors_tta": "",
           "nll": round(nll(digits.labels, once), 5)}
    if with_tta:  # in each net first, as `load_pretrained("vote")` predicts
        five = np.mean([predict_with_tta(predict, digits.images, 1) for predict in predictors],
                       axis=0)
        row["errors_tta"] = accuracy(digits.labels, five.argmax(axis=1)).errors
    return row


def watched(nets: list[Net], n: int) -> dict:
    "Seconds and, where they were counted, errors after each epoch of a single net"
    net, *others = nets
    if others:
        return {"curve": "", "epoch_seconds": ""}
    accuracies = net.history_.get("val_accuracy", [])
    return {"curve": " ".join(str(round((1 - value) * n)) for value in accuracies),
            "epoch_seconds": " ".join(f"{value:.1f}" for value in net.history_.seconds)}


def run(experiment: Experiment, seed: int, train, test, again: bool = False) -> dict:
    "Train one net, or those of a vote, and describe the run in a row."
    folder = None if again else os.environ.get("DIGITREC_RUNS")  # keep the nets there, if it is set
    nets = untrained(experiment, seed, folder)
    watch = {"validation": (test.images, test.labels)} if experiment.group in FINAL else {}
    for net in nets:
        net.fit(train.images, train.labels, **watch)
    return describe(experiment, seed, nets, len(train), test)


def describe(experiment: Experiment, seed: int, nets: list[Net], n: int, test) -> dict:
    "The row of a run whose nets are trained on n digits"
    return {"group": experiment.group, "name": experiment.name, "seed": seed,
            "train": n, "test": len(test), "epochs": len(nets[0].history_),
            "precision": experiment.recipe.precision,
            "parameters": sum(net.model_.count_params() for net in nets),
            **score(nets, test, experiment.group != "classic"),
            "seconds": round(sum(net.seconds_ for net in nets), 1), "kept": experiment.kept,
            **watched(nets, len(test)),
            "machine": f"{joblib.cpu_count()} CPUs, {platform.machine()}",
            "date": date.today().isoformat()}


def add(row: dict):
    "Add a row to the file, or put it in place of the same run's."
    table = pd.DataFrame([row])
    if CSV.exists():
        old = pd.read_csv(CSV, keep_default_na=False)
        same = (old[KEY] == [row[key] for key in KEY]).all(axis=1)
        table = pd.concat([old[~same], table])
    with atomic_write(CSV) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def runs(groups, name, again):
    "The runs that are asked for: each experiment and each of its seeds"
    wanted = [experiment for experiment in ALL
              if experiment.group in groups and name in (None, experiment.name)]
    done = set()
    if CSV.exists() and not again:
        done = set(pd.read_csv(CSV)[KEY].itertuples(index=False, name=None))
    in_order = [(experiment, seed) for experiment in wanted for seed in range(experiment.seeds)]
    for experiment, seed in sorted(in_order, key=lambda run: run[0].group in FINAL and run[1]):
        if (experiment.group, experiment.name, seed) not in done:
            yield experiment, seed


def embedded() -> Digits:
    "All digits inside scikit-learn"
    parts = load("digits")
    images, labels = (np.concatenate([getattr(part, name) for part in parts])
                      for name in ("images", "labels"))
    return Digits(images, labels, "embedded digits")


def fold(i: int):
    "The digits of a fold of the Kaggle-format table: to train on, and to be scored on"
    table, _ = load("kaggle")
    rows, held = splits(table, 5)[i]
    return table[rows], table[held]


def main():
    known = sorted({experiment.group for experiment in ALL})
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("groups", nargs="*", default=known, help=", ".join(known))
    parser.add_argument("--name", help="only the experiment of this name")
    parser.add_argument("--again", action="store_true", help="run also what the file has")
    options = parser.parse_args()
    if not set(options.groups) <= set(known):
        parser.error(f"groups {options.groups}; expected some of {known}")
    train, test = load("mnist")
    rest, held = split(train, 1 / 6)
    few = rest[np.random.default_rng(0).permutation(len(rest))[:10_000]]
    small = replace(held, images=distort(held.images, "resolution", 2.5))  # 8 × 8 squares a digit
    digits = {"log": (rest, held), "reduced": (rest, small), "classic": (few, held)}
    digits |= dict.fromkeys(FINAL, (train, test)) | {"embedded": (train, embedded())}
    for experiment, seed in runs(options.groups, options.name, options.again):
        pair = fold(seed) if experiment.group == "folds" else digits[experiment.group]
        row = run(experiment, seed, *pair, options.again)
        add(row)
        print({key: row[key] for key in ("name", "seed", "errors", "errors_tta", "seconds")},
              flush=True)


if __name__ == "__main__":
    main()
