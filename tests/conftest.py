"""What several tests share."""
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SLOWEST = [f"test_{name}" for name in ("cluster", "cli", "training", "backend", "page", "ensemble",
                                       "export", "models", "contract", "inside")]


def pytest_collection_modifyitems(items):
    "Begin with the slowest files, so that two workers end at about the same time."
    rank = {name: i for i, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture
def house(tmp_path):
    "A copy of the sources that a test may change."
    house = tmp_path / "house"
    for folder in ["digitrec", "nbs", "tools", "web"]:
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / folder, house / folder, ignore=ignored)
    for name in ["settings.ini", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, house)
    return house
