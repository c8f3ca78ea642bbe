"""The house: modules match notebooks, chapters build on those before them, names are public."""
import ast
import configparser
import importlib
import inspect
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
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if re.match(r"\d\d[a-z]?_", path.name)]
BY_HAND = {"__init__.py", "__main__.py"}  # the modules that no notebook writes
# An absolute path on somebody's machine. Kaggle's and Colab's own folders are every reader's.
PRIVATE_PATH = re.compile(r"(?<![\w./:<~])/(?!kaggle/|content/)[\w.-]+/[\w.-]+|\b[A-Z]:\\\w+")
DRAWS = re.compile(
    r"show|(sns\.)?\w*plot\w*|plt\.(figure|subplots)|display_(activations|heatmaps)|"
    r"(plt|sns|ax|axes|axis)\.\w*(imshow|plot|bar|barh|scatter|hist|heatmap|errorbar|matshow|step)")
# Public names of 0.1.0, and words that STYLE's table replaces.
OLD_NAMES = set("""
whole_numbers moved refusal places replacing shares plot_shares principal components_for plot_map
fastest opinion cuts CUTS cut optimism mistakes show_opinions rescues corrected suspects refuses
train_by_hand save_net load_net save_ensemble load_ensemble said some lines way make keep
recall examine hits misses net_ shifts strangers batch rate optimiser smoothing at_most quiet
held_out Strangers
""".split())
OLD_WORDS = set("""opinion opinions mistake mistakes refuses refusal suspects suspect flattery
optimism strangers misread mended judged answers""".split())


def nbdev(command, house):
    "Run one of nbdev's commands in `house`, without the IN_TEST that silences it."
    program = shutil.which(command, path=Path(sys.executable).parent)
    env = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    subprocess.run([program], cwd=house, env=env, check=True)


def files(folder, pattern):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def chapters(house):
    "The modules in the order of their chapters."
    cells = [cell for path in sorted((house / "nbs").glob("[0-9][0-9]*_*.ipynb"))
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
    return [(name, other) for i, name in enumerate(order)
            for other in imports(house / f"digitrec/{name}.py") if other in order[i:]]


def test_modules_are_in_step_with_the_notebooks(house):
    for module in (house / "digitrec").glob("*.py"):
        if module.name not in BY_HAND:
            module.unlink()
    nbdev("nbdev_export", house)
    assert files(house / "digitrec", "*.py") == files(ROOT / "digitrec", "*.py")


def test_notebooks_are_clean(house):
    nbdev("nbdev_clean", house)
    assert files(house / "nbs", "*.ipynb") == files(ROOT / "nbs", "*.ipynb")


def test_chapters_import_only_from_chapters_before_them(house):
    assert chapters(house)[0] == "data"
    assert out_of_order(house) == []


@pytest.mark.parametrize("line", [
    "from .cli import app", "from . import cli", "import digitrec.cli", "from digitrec import cli",
    "def run():\n    from digitrec.cli import app"])
def test_an_import_from_a_later_chapter_is_noticed(house, line):
    with open(house / "digitrec/data.py", "a", encoding="utf-8") as module:
        module.write(f"\n{line}\n")
    assert set(out_of_order(house)) == {("data", "cli")}


def test_one_version():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    assert digitrec.__version__ == settings["DEFAULT"]["version"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
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
    package = ROOT / "digitrec"
    ours = [*package.glob("*.py"), package / "py.typed", *(package / "pretrained").iterdir()]
    paths = [path.relative_to(ROOT).as_posix() for path in ours]
    paths += [f"digitrec/web/{path.name}" for path in (ROOT / "web").iterdir()]
    assert sorted(names) == sorted(paths)


# Chapters: their order, their cells and their pictures

def test_a_chapter_with_a_letter_follows_its_number():
    order = chapters(ROOT)
    assert order == list(dict.fromkeys(order))
    assert ["data", "pictures", "sources", "eda"] == order[:4]
    assert order.index("backend") < order.index("recipe") < order.index("training")
    assert [path.name for path in CHAPTERS] == sorted(path.name for path in CHAPTERS)


def code_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def is_export(cell):
    return re.search(r"^#\| *exporti?\b", cell.source, re.M) is not None


def statements(source):
    "The lines of a cell that hold code or comments: neither empty ones nor directives."
    return [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]


def parsed(source):
    "A cell's syntax tree; lines of IPython's own (`%pip`, `!ls`) are left out."
    own = re.compile(r"^( *)[%!].*$", re.M)
    return ast.parse(own.sub(r"\1pass", source))


def is_command(node):
    "Whether a function is a command, whose help text counts among its lines."
    return isinstance(node, ast.FunctionDef) and "app.command" in map(ast.unparse, (
        call.func for call in node.decorator_list if isinstance(call, ast.Call)))


def holds_command(source):
    "Whether a cell holds a command, which may be long."
    return any(map(is_command, parsed(source).body))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_cells_are_small(path):
    found = []
    for cell in code_cells(path):
        n, limit = len(statements(cell.source)), 25 if is_export(cell) else 8
        if n > limit and not holds_command(cell.source):
            found.append(f"{n} lines, at most {limit}: {cell.source[:300]}")
    assert found == []


def wide(text, width=100):
    return [line for line in text.splitlines() if len(line) > width]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_in_notebooks_is_100_columns_wide(path):
    found = [line for cell in code_cells(path) for line in wide(cell.source)]
    # how long a fork's address is, is its owner's affair
    assert [line for line in found if "%pip install" not in line] == []


MODULES = sorted(path for path in (ROOT / "digitrec").glob("*.py") if path.name != "_modidx.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_are_100_columns_wide(path):
    text = path.read_text(encoding="utf-8")
    assert wide(re.sub(r"^__all__ = \[.*?\]$", "", text, flags=re.M | re.S)) == []  # nbdev's line


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_scale_is_chosen_in_the_settings_cell(path):
    cells = [cell for cell in code_cells(path) if "IN_TEST" in cell.source]
    for cell in cells[1:]:  # the first is the settings cell
        choices = [node for node in ast.walk(parsed(cell.source)) if isinstance(node, ast.IfExp)]
        assert not any("IN_TEST" in ast.unparse(node.test) for node in choices), cell.source


def nested_comprehensions(source):
    kinds = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
    outer = [node for node in ast.walk(parsed(source)) if isinstance(node, kinds)]
    return [ast.unparse(node) for node in outer
            if any(isinstance(inner, kinds) for inner in ast.walk(node) if inner is not node)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_comprehension_holds_another(path):
    found = [nested_comprehensions(cell.source) for cell in code_cells(path)]
    assert [nested for nested in found if nested] == []


def calls(nodes):
    "The names of what is called at top level: not inside a function or a class that is defined."
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        yield from calls(ast.iter_child_nodes(node))


def draws(cell):
    "Whether a cell leaves a figure on the screen."
    names = list(calls(parsed(cell.source).body))
    closes = "plt.close" in names or "eval: false" in cell.source
    return not closes and any(DRAWS.fullmatch(name) for name in names)


def has_picture(cell):
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_that_draws_keeps_its_picture(path):
    cells = [cell for cell in code_cells(path) if not is_export(cell) and draws(cell)]
    assert [cell.source for cell in cells if not has_picture(cell)] == []


@pytest.mark.parametrize("source, drawn", [
    ("show(images);", True), ("plt.subplots()", True),
    ("for ax in axes:\n    ax.imshow(image)", True),
    ("def figure():\n    plt.subplots()", False), ("plt.plot(x)\nplt.close()", False),
    ("plot_history(net)", True), ("print(show)", False)])
def test_a_cell_that_draws_is_noticed(source, drawn):
    assert draws(nbformat.v4.new_code_cell(source)) == drawn


def is_told(cell):
    "Whether a cell shows a reader a picture or a table."
    if cell.cell_type == "markdown":
        return re.search(r"^\|.*\|$|!\[|<img|<picture", cell.source, re.M) is not None
    data = [output.get("data", {}) for output in cell.outputs]
    return has_picture(cell) or any({"text/html", "text/markdown"} & kinds.keys() for kinds in data)


def sets_up(cell):
    "Whether a cell only prepares: a lesson cell that shows nothing, or no more than printed lines."
    if cell.cell_type != "code" or is_export(cell):
        return False
    return all(output.output_type == "stream" for output in cell.outputs)


def first_cells(path, n=3):
    "The first cells after the install cell, but for those that prepare, of which a few may be."
    cells = nbformat.read(path, as_version=4).cells
    start = next(i for i, cell in enumerate(cells) if cell.source.startswith("#| eval: false"))
    return [cell for cell in cells[start + 1:start + 9] if not sets_up(cell)][:n]


# Chapters that the next parts of the second edition rebuild.
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_opens_with_a_picture_or_a_table(path):
    assert any(map(is_told, first_cells(path)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_needs_jinja2(path):
    style = re.compile(r"(?<!plt)\.style\b")
    assert [cell.source for cell in code_cells(path) if style.search(cell.source)] == []


# The public names

def public_names():
    "Each module, and what it makes public."
    for name in chapters(ROOT):
        module = importlib.import_module(f"digitrec.{name}")
        yield module, getattr(module, "__all__", [])


def test_modules_make_no_module_public():
    leaks = [(module.__name__, name) for module, names in public_names() for name in names
             if inspect.ismodule(getattr(module, name)) or name in {"layers", "ops"}]
    assert leaks == []


def members(value):
    "The public attributes and the parameters of a class or a function."
    if inspect.isclass(value):
        yield from (name for name in vars(value) if not name.startswith("_"))
        yield from getattr(value, "__dataclass_fields__", {})
    if inspect.isfunction(value) or inspect.isclass(value):
        try:
            yield from inspect.signature(value).parameters
        except ValueError:  # a class of another language has none
            return


def is_old(name):
    return name in OLD_NAMES or not OLD_WORDS.isdisjoint(name.lower().split("_"))


def test_public_names_are_the_fields_own():
    found = set()
    for module, names in public_names():
        for name in names:
            value = getattr(module, name)
            ours = getattr(value, "__module__", "").startswith("digitrec")
            parts = [name, *(members(value) if ours else ())]
            found |= {f"{module.__name__}.{name}: {part}" for part in parts if is_old(part)}
    assert found == set()


def test_the_light_door():
    "`import digitrec` imports nothing but Python's own modules."
    code = ("import sys; before = {*sys.modules}; import digitrec; "
            "print({name.partition('.')[0] for name in {*sys.modules} - before} - {'digitrec'})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def renamed():
    "The old and the new names in the changelog's table, each as (module, name)."
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    table = re.search(r"^### Old and new names\n(.*?)^## ", text, re.M | re.S).group(1)
    for old, new in re.findall(r"^\| (`.*?) \| (.*?) \|$", table, re.M):
        yield tuple(re.findall(r"`([a-z]+)\.(\w+)`", column) for column in (old, new))


def test_the_changelog_names_what_is_there():
    pairs = list(renamed())
    assert len(pairs) > 30
    for module, name in {name for _, new in pairs for name in new}:
        assert hasattr(importlib.import_module(f"digitrec.{module}"), name), f"{module}.{name}"


def test_no_old_name_is_left():
    left = []
    for module, name in {name for old, _ in renamed() for name in old}:
        try:
            public = importlib.import_module(f"digitrec.{module}").__all__
        except ModuleNotFoundError:
            continue
        left += [f"{module}.{name}"] * (name in public)
    assert left == []
