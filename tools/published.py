"""Train the nets of two published ensembles, and store their results for chapter 09b.

    python tools/published.py s1           # 15 folds, each warped once and trained on that copy
    python tools/published.py s1-fresh     # the same folds, warped anew in each epoch
    python tools/published.py s2           # ten nets, each with its own validation digits and stop
    python tools/published.py s1 --members 3             # the first three folds only
    python tools/published.py s2 --source digits --epochs 2 --out FOLDER  # a test, in a minute

Each member takes half an hour to an hour on a CPU. Its results are written when it is finished,
and a member whose results are there is skipped: start the same command again after a stop. An
unfinished member resumes from the folder that DIGITREC_RUNS names, or from one among the temporary
files.

A member's files: `SYSTEM-NN.npz` (predicted probabilities of the test and the scoring digits, as
whole numbers from 0 to 255), its epochs in `s1-folds.csv`, `s1-fresh-folds.csv` or `s2-nets.csv`,
and a row of facts in `SYSTEM-members.csv`. The data stays out: for a scoring digit, the ten
probabilities begin with the true digit's, and what the vote of the stored members took each digit
for is counted in `SYSTEM-confusion.csv`.
"""
import argparse
import os
import platform
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count

import digitrec
from digitrec.augmentation import augment
from digitrec.data import Digits, atomic_write, split
from digitrec.ensemble import splits
from digitrec.recipe import RECIPES, Recipe
from digitrec.scores import confusion
from digitrec.sources import load
from digitrec.training import Net, digest, keras

OUT = Path(__file__).resolve().parent.parent / "nbs" / "published"
RUNS = os.environ.get("DIGITREC_RUNS") or Path(tempfile.gettempdir()) / "digitrec-published"
MEMBERS = {"s1": 15, "s1-fresh": 15, "s2": 10}  # as published
HISTORY = {"s1": "s1-folds.csv", "s1-fresh": "s1-fresh-folds.csv", "s2": "s2-nets.csv"}
COLUMNS = ["member", "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"]
_FRESH = replace(RECIPES["cv-2020"], name="cv-2020-fresh", monitor="val_accuracy",
                 precision="bfloat16")  # TPUs of 2020 multiplied in bfloat16
RECIPE = {
    "s1": replace(_FRESH, name="cv-2020-frozen", augmentation=None),
    "s1-fresh": _FRESH,
    "s2": replace(RECIPES["triple-2021"], precision="bfloat16"),
}


def shares(source: str) -> tuple[Digits, Digits, Digits]:
    "Load digits: those to train on, a tenth that chooses nothing and scores, and the test digits."
    train, test = load(source)
    rest, scoring = split(train, 0.1)
    return rest, scoring, test


def train_fold(system: str, recipe: Recipe, number: int, digits: Digits) -> tuple[Net, int, int]:
    "Train the net of one of S1's folds, whose digits choose the epoch, as published."
    rows, held = splits(digits, MEMBERS[system], "plain", seed=42)[number - 1]
    images = digits.images[rows]
    if system == "s1":
        images = augment(images, RECIPES["cv-2020"].augmentation, number - 1)
    validation = digits.images[held], digits.labels[held]
    net = Net(recipe, number - 1, RUNS).fit(images, digits.labels[rows], None, validation)
    return net, len(rows), len(held)


def train_net(recipe: Recipe, number: int, digits: Digits) -> tuple[Net, int, int]:
    "Train one of S2's nets, which holds out its own validation digits."
    net = Net(recipe, number - 1, RUNS).fit(digits.images, digits.labels)
    n_held = len(split(digits, recipe.validation_split, number - 1)[1])
    return net, len(digits) - n_held, n_held


def to_bytes(probabilities: np.ndarray) -> np.ndarray:
    "Round probabilities to uint8, × 255; the digit that was predicted stays the only highest."
    stored = np.rint(255 * probabilities).astype(np.uint8)
    rows, best = np.arange(len(stored)), probabilities.argmax(axis=1)
    tied = (stored == stored.max(axis=1, keepdims=True)).sum(axis=1) > 1
    stored[rows, best] += tied  # of a tie, each is at most 128
    return stored


def from_truth(labels: np.ndarray) -> np.ndarray:
    "Column numbers (n, 10) that begin with the true digit and count on from there, 0 after 9."
    return (labels[:, None] + np.arange(10)) % 10


def facts(number: int, net: Net, n_train: int, n_held: int, scoring: Digits, test: Digits) -> dict:
    "Describe a member: its row in the table of members."
    return {
        "member": number, "recipe": net.recipe.name, "seed": net.seed, "n_train": n_train,
        "n_validation": n_held, "epochs": len(net.history_), "best_epoch": net.best_epoch_,
        "precision": net.recipe.precision, "seconds": round(net.seconds_, 1),
        "cpus": cpu_count(), "machine": platform.machine(),
        "python": platform.python_version(), "keras": keras.__version__,
        "backend": keras.backend.backend(), "digitrec": digitrec.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        **checksums(scoring, test),
    }


def checksums(scoring: Digits, test: Digits) -> dict:
    "What tells these digits from others"
    return {"scoring_digits": digest(scoring.images, scoring.labels)[:12],
            "test_digits": digest(test.images)[:12]}


def add_rows(path: Path, rows: pd.DataFrame):
    "Put a member's rows into a table, in place of older ones of that member."
    if path.exists():
        old = pd.read_csv(path)
        rows = pd.concat([old[~old["member"].isin(rows["member"])], rows])
        rows = rows.sort_values("member", kind="stable")
    with atomic_write(path) as temporary:
        rows.to_csv(temporary, index=False)


def is_stored(out: Path, system: str, number: int) -> bool:
    "Whether a member's results are there. Its probabilities are the last file that is written."
    return (out / f"{system}-{number:02}.npz").exists()


def store(out: Path, system: str, number: int, net: Net, about: dict, scoring, test):
    "Write a member's results, each file whole or not at all."
    history = net.history_.reset_index().assign(member=number)[COLUMNS]
    add_rows(out / HISTORY[system], history.round(6))
    add_rows(out / f"{system}-members.csv", pd.DataFrame([about]))
    scored = net.predict_proba(scoring.images)
    scored = np.take_along_axis(scored, from_truth(scoring.labels), axis=1)
    probabilities = {"scoring": to_bytes(scored), "test": to_bytes(net.predict_proba(test.images))}
    with atomic_write(out / f"{system}-{number:02}.npz") as temporary:
        np.savez_compressed(temporary, **probabilities)


def count_confusion(out: Path, system: str, labels: np.ndarray):
    "Count the true digits (rows) by what the vote of the stored members predicts (columns)."
    members = [np.load(path)["scoring"] for path in sorted(out.glob(f"{system}-[0-9][0-9].npz"))]
    places = np.sum(members, axis=0, dtype=int).argmax(axis=1)
    counts = confusion(labels, (labels + places) % 10)
    with atomic_write(out / f"{system}-confusion.csv") as temporary:
        pd.DataFrame(counts).to_csv(temporary, index=False)


def train_member(system: str, recipe: Recipe, number: int, digits, scoring, test, out: Path):
    "Train a member, and store it."
    net, n_train, n_held = (train_net(recipe, number, digits) if system == "s2" else
                            train_fold(system, recipe, number, digits))
    about = facts(number, net, n_train, n_held, scoring, test)
    store(out, system, number, net, about, scoring, test)
    row = net.history_.loc[net.best_epoch_]
    print(f"{system}, member {number}: validation accuracy {row.val_accuracy:.4f} in epoch "
          f"{net.best_epoch_} of {len(net.history_)}, {net.seconds_:,.0f} s", flush=True)


def check_stored(out: Path, system: str, scoring: Digits, test: Digits):
    "Exit if the members that are stored were scored on other digits."
    path = out / f"{system}-members.csv"
    stored = pd.read_csv(path) if path.exists() else pd.DataFrame()
    for name, expected in checksums(scoring, test).items():
        if len(stored) and set(stored[name]) != {expected}:
            found = sorted(set(stored[name]))
            raise SystemExit(f"{path}: found {name} {found}; expected {expected}, as these digits "
                             "have, or another --out")


def train_members(system: str, members: int, out: Path, source: str = "kaggle",
                  epochs: int | None = None):
    "Train the members that are missing among the first so many, and store each when finished."
    digits, scoring, test = shares(source)
    check_stored(out, system, scoring, test)
    recipe = RECIPE[system]
    if epochs:
        recipe = replace(recipe, epochs=epochs)
    for number in range(1, members + 1):
        if is_stored(out, system, number):
            print(f"{system}, member {number}: stored", flush=True)
        else:
            train_member(system, recipe, number, digits, scoring, test, out)
        count_confusion(out, system, scoring.labels)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("system", choices=MEMBERS)
    parser.add_argument("--members", type=int, help="train the first so many; all by default")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder to write results to")
    parser.add_argument("--source", default="kaggle", help="kaggle, digits, or a folder")
    parser.add_argument("--epochs", type=int, help="at most so many, for a test")
    options = parser.parse_args(arguments)
    members = MEMBERS[options.system] if options.members is None else options.members
    if not 1 <= members <= MEMBERS[options.system]:
        parser.error(f"--members {members}; expected 1 to {MEMBERS[options.system]}")
    train_members(options.system, members, options.out, options.source, options.epochs)


if __name__ == "__main__":
    main()
