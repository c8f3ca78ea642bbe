"""The types: a consumer's program checks with mypy, and a wrong one does not."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RIGHT = """
from pathlib import Path

import digitrec
from digitrec.data import Digits, split
from digitrec.recipe import RECIPES, Recipe
from digitrec.scores import Accuracy, accuracy
from digitrec.sources import load

train, test = load("digits")
digits: Digits = train
first, second = split(digits, 0.1, seed=0)
recipe: Recipe = RECIPES["few"]
name: str = recipe.name
rate: float = recipe.learning_rate
assert test.labels is not None
score: Accuracy = accuracy(test.labels, test.labels)
errors: int = score.errors
recogniser = digitrec.load_pretrained("tiny")
"""
WRONG = """
from digitrec.recipe import RECIPES
from digitrec.scores import accuracy
from digitrec.sources import load

train, test, more = load("digits")
rate: str = RECIPES["few"].learning_rate
accuracy(train.labels, train.labels).misses
load(source=None, quiet=True)
"""


def check(folder, program):
    "What mypy says about a program that uses the package."
    pytest.importorskip("mypy")
    path = folder / "consumer.py"
    path.write_text(program)
    ignored = shutil.ignore_patterns("pretrained", "__pycache__")
    shutil.copytree(ROOT / "digitrec", folder / "digitrec", ignore=ignored)
    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    mypy = [sys.executable, "-m", "mypy", *options, f"--cache-dir={folder}/cache", path.name]
    return subprocess.run(mypy, cwd=folder, capture_output=True, text=True).stdout


def test_a_consumers_program_is_typed(tmp_path):
    assert "Success" in check(tmp_path, RIGHT)


def test_a_wrong_program_is_noticed(tmp_path):
    said = check(tmp_path, WRONG).splitlines()
    for line, what in [(6, "unpack"), (7, "assignment"), (8, "misses"), (9, "quiet")]:
        found = [report for report in said if report.startswith(f"consumer.py:{line}:")]
        assert found and what in found[0], said
