"""One address: settings.ini holds it, and every badge, link and install cell follows."""
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (ROOT / "settings.ini").read_text(encoding="utf-8")
OWNER, REPO = (re.search(rf"^{name} *= *(\S+)", SETTINGS, re.M).group(1)
               for name in ("user", "repo"))
ADDRESS = f"{OWNER}/{REPO}"
CHAPTERS = sorted(path for path in (ROOT / "nbs").glob("*.ipynb") if path.name[0].isdigit())


def address(root, *arguments):
    program = [sys.executable, root / "tools/address.py", *arguments]
    return subprocess.run(program, capture_output=True, text=True)


def texts(root):
    "Every text file of a checkout that may hold an address."
    kinds = {".ipynb", ".md", ".toml", ".ini", ".py", ".yml", ".json", ".html", ".js"}
    paths = [path for path in root.rglob("*") if path.suffix in kinds and path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def checkout(house):
    for name in ["CONTRIBUTING.md", "CHANGELOG.md"]:
        shutil.copy(ROOT / name, house)
    return house


def test_addresses_are_in_step():
    answer = address(ROOT, "--check")
    assert answer.returncode == 0, answer.stderr


def test_a_fork_changes_every_address_and_back(checkout):
    assert address(checkout).returncode == 0
    before = texts(checkout)
    assert address(checkout, "some-one/fork.of-it").returncode == 0
    after = texts(checkout)
    old = re.compile(rf"github(\.com)?/{ADDRESS}(?![\w-])|{OWNER}\.github\.io/{REPO}".encode())
    assert [name for name, text in after.items() if old.search(text)] == []
    for name in ["README.md", "pyproject.toml", "nbs/00_data.ipynb", "nbs/index.ipynb"]:
        assert b"some-one/fork.of-it" in after[name]
    assert address(checkout, "--check").returncode == 0
    assert address(checkout, ADDRESS).returncode == 0
    assert texts(checkout) == before


def test_other_peoples_addresses_stay(checkout):
    credit = "https://github.com/roma-glushko/kaggle-digit-recognizer"
    with open(checkout / "README.md", "a", encoding="utf-8") as readme:
        readme.write(f"\n{credit} https://github.com/{ADDRESS}-extra\n")
    assert address(checkout, "some-one/fork").returncode == 0
    text = (checkout / "README.md").read_text(encoding="utf-8")
    assert credit in text and f"{ADDRESS}-extra" in text


def test_a_changed_install_cell_is_noticed(checkout):
    path = checkout / "nbs/00_data.ipynb"
    assert address(checkout).returncode == 0
    path.write_text(path.read_text(encoding="utf-8").replace("%pip install -q", "%pip install"))
    answer = address(checkout, "--check")
    assert answer.returncode == 1 and "nbs/00_data.ipynb" in answer.stderr


@pytest.mark.parametrize("name", ["owner", "owner/", "a/b/c", "https://github.com/a/b"])
def test_what_is_no_address_is_refused(checkout, name):
    before = texts(checkout)
    answer = address(checkout, name)
    assert answer.returncode == 1 and "expected OWNER/REPO" in answer.stderr
    assert texts(checkout) == before


# The install cells

def install_cell(path):
    cells = nbformat.read(path, as_version=4).cells[1:4]
    return next(cell.source for cell in cells if cell.source.startswith("#| eval: false"))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_an_install_cell_is_short_and_brings_no_engine(path):
    source = install_cell(path)
    assert source.startswith("#| eval: false") and len(source.splitlines()) <= 8
    assert not re.search(r"\[(cpu|gpu|tpu)\]|tensorflow|jax", source)


@pytest.fixture
def run(monkeypatch):
    "Return a function that runs a cell without digitrec: the error, and the arguments of pip."
    shell, told = InteractiveShell.instance(), []
    shell.register_magic_function(told.append, magic_name="pip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    yield lambda source: (shell.run_cell(source).error_in_exec, told)
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("path", CHAPTERS[:1], ids=lambda path: path.stem)
def test_with_internet_the_repository_is_installed(run, path):
    error, told = run(install_cell(path))
    assert [line.split() for line in told] == [
        ["install", "-q", f"git+https://github.com/{ADDRESS}"]]
    assert isinstance(error, ImportError)  # as nothing came
    assert "internet" in str(error) and "wheels" in str(error) and "\n" not in str(error)


def test_without_internet_an_attached_folder_is_installed(run, tmp_path):
    wheel = tmp_path / "datasets/me/digitrec-wheels/digitrec-0.2.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    _, told = run(install_cell(CHAPTERS[0]).replace("/kaggle/input", str(tmp_path)))
    assert [line.split() for line in told] == [
        ["install", "-q", "--no-index", "-f", str(wheel.parent), "digitrec"]]


def test_where_the_package_is_nothing_is_installed():
    shell, told = InteractiveShell.instance(), []
    shell.register_magic_function(told.append, magic_name="pip")
    assert shell.run_cell(install_cell(CHAPTERS[0])).error_in_exec is None
    assert told == []
    InteractiveShell.clear_instance()


def test_a_folder_of_wheels(checkout, tmp_path):
    program = [sys.executable, checkout / "tools/wheels.py", tmp_path / "wheels"]
    options = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*program, *options], check=True, capture_output=True)
    [wheel] = (tmp_path / "wheels").iterdir()
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "-f", wheel.parent, "--target", target, "digitrec"], check=True)
    assert (target / "digitrec/py.typed").is_file()


def test_a_check_changes_nothing(checkout):
    before = texts(checkout)
    answer = address(checkout, "--check", "some-one/else")
    assert answer.returncode == 1 and "expected either" in answer.stderr
    assert texts(checkout) == before
