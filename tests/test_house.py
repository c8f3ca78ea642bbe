"""The house: modules say what the notebooks say, chapters build on those before them, the wheel holds the package."""
import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

import digitrec

ROOT = Path(__file__).resolve().parent.parent
# An absolute path on somebody's machine. Kaggle's and Colab's own folders are every reader's.
PRIVATE_PATH = re.compile(r"(?<![\w./:<~])/(?!kaggle/|content/)[\w.-]+/[\w.-]+|\b[A-Z]:\\\w+")


def nbdev(command, house):
    "Run one of nbdev's commands in `house`, without the IN_TEST that silences it."
    program = shutil.which(command, path=Path(sys.executable).parent)
    env = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    subprocess.run([program], cwd=house, env=env, check=True)


def files(folder, pattern):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def chapters(house):
    "The modules in the order of their chapters."
    cells = [cell for path in sorted((house / "nbs").glob("[0-9][0-9]_*.ipynb"))
             for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names = [re.match(r"#\| *default_exp +(\w+)", cell.source) for cell in cells]
    return [name.group(1) for name in names if name]


def imports(module):
    "The digitrec modules that a module's source imports, anywhere in it."
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = "digitrec." * node.level + (node.module or "")
            names = [start, *(f"{start.rstrip('.')}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name.split(".")[1] for name in names if re.match(r"digitrec\.\w", name))


def out_of_order(house):
    "Pairs of a module and a module of its own or a later chapter that it imports."
    order = chapters(house)
    return [(name, other) for i, name in enumerate(order) for other in imports(house / f"digitrec/{name}.py")
            if other in order[i:]]


def test_modules_are_in_step_with_the_notebooks(house):
    for module in (house / "digitrec").glob("*.py"):
        if module.name != "__init__.py":
            module.unlink()
    nbdev("nbdev_export", house)
    assert files(house / "digitrec", "*.py") == files(ROOT / "digitrec", "*.py")


def test_notebooks_are_clean(house):
    nbdev("nbdev_clean", house)
    assert files(house / "nbs", "*.ipynb") == files(ROOT / "nbs", "*.ipynb")


def test_chapters_import_only_from_chapters_before_them(house):
    assert chapters(house)[0] == "data"
    assert out_of_order(house) == []


@pytest.mark.parametrize("line", ["from .cli import app", "from . import cli", "import digitrec.cli",
                                  "from digitrec import cli", "def run():\n    from digitrec.cli import app"])
def test_an_import_from_a_later_chapter_is_noticed(house, line):
    with open(house / "digitrec/data.py", "a", encoding="utf-8") as module:
        module.write(f"\n{line}\n")
    assert set(out_of_order(house)) == {("data", "cli")}


def test_one_version():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    assert digitrec.__version__ == settings["DEFAULT"]["version"]


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_show_no_error_and_no_private_path(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", cell.source
            shown = [output.get("text", ""), *(data for kind, data in output.get("data", {}).items()
                                               if kind.startswith("text/"))]
            found = PRIVATE_PATH.search("\n".join(shown))
            assert found is None, f"{found.group()} in the output of: {cell.source}"


def test_wheel_holds_the_package_and_nothing_else(house, tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, house], check=True)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name == f"digitrec-{digitrec.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 12_000_000
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    ours = [*(ROOT / "digitrec").glob("*.py"), *(ROOT / "digitrec/pretrained").iterdir()]
    assert sorted(names) == sorted(path.relative_to(ROOT).as_posix() for path in ours)
