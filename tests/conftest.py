"""What several tests share."""
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
