"""The README: in step with its notebook, and true."""
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def check(root):
    program = [sys.executable, root / "tools/readme.py", "--check"]
    return subprocess.run(program, capture_output=True, text=True)


def test_readme_is_in_step():
    answer = check(ROOT)
    assert answer.returncode == 0, answer.stderr


def test_a_changed_notebook_is_noticed(house):
    nb = nbformat.read(house / "nbs/index.ipynb", as_version=4)
    nb.cells.append(nbformat.v4.new_markdown_cell("One more thing."))
    nbformat.write(nb, house / "nbs/index.ipynb")
    answer = check(house)
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1 and "README.md" in answer.stderr


def test_a_lost_picture_is_noticed_and_put_back(house):
    nb = nbformat.read(house / "nbs/index.ipynb", as_version=4)
    pixel = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJ"
             "RU5ErkJggg==")
    picture = nbformat.v4.new_output("display_data", {"image/png": pixel})
    nb.cells.append(nbformat.v4.new_code_cell("#| echo: false\npicture", outputs=[picture]))
    nbformat.write(nb, house / "nbs/index.ipynb")
    answer = check(house)
    path = re.search(r"nbs/images/readme_\d+\.png", answer.stderr).group()
    subprocess.run([sys.executable, house / "tools/readme.py"], check=True)
    assert f"]({path})" in (house / "README.md").read_text(encoding="utf-8")
    assert (house / path).read_bytes().startswith(b"\x89PNG")
    assert check(house).returncode == 0


def test_start_is_one_block_of_two_commands():
    start = re.search(r"^## Start\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)
    blocks = re.findall(r"^```\w*\n(.*?)^```$", start, re.M | re.S)
    assert len(blocks) == 1
    commands = blocks[0].splitlines()
    assert len(commands) == 2
    assert all(command.startswith("python -m pip install ") for command in commands)


@pytest.mark.parametrize("system", ["S1", "S2", "S3", "S4", "S5"])
def test_every_system_has_its_row(system):
    assert re.findall(rf"^\|[^\w\n]*{system}\b.*\|$", README, re.M)


def test_relative_links_lead_to_files():
    prose = re.sub(r"```.*?```|`[^`\n]+`", "", README, flags=re.S)
    targets = re.findall(r'\]\(([^)\s]+)|(?:src|href)="([^"]+)"', prose)
    links = {"".join(pair).partition("#")[0] for pair in targets}
    relative = sorted(link for link in links if link and not re.match(r"\w+:", link))
    assert relative
    assert [link for link in relative if not (ROOT / link).is_file()] == []


# The figures: each is found in what its chapter printed, or follows from it

NUMBER = re.compile(r"(?<![\w.])(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(%?)")


def numbers(text):
    "All numbers in a text; 98.8% is 0.988."
    return [float(found.group().rstrip("%").replace(",", "")) / (100 if found[1] else 1)
            for found in NUMBER.finditer(text)]


def texts(cell):
    "What a cell printed or showed, as text."
    for output in cell.get("outputs", []):
        yield output.get("text", "") or output.get("data", {}).get("text/plain", "")


def printed(chapter, *keys):
    "The lines that each key names."
    return "\n".join(lines_of(chapter, key) for key in keys)


def lines_of(chapter, key):
    """The lines of a chapter's outputs that begin with `key`, each with the lines set in below it;
    or, where there are none, all that the cell with that last line shows."""
    cells = nbformat.read(ROOT / chapter, as_version=4).cells
    lines = "\n".join(text for cell in cells for text in texts(cell)).splitlines()
    found, inside = [], False
    for line in lines:
        begins = re.match(rf"\s*{re.escape(key)}(?![\w-])", line) is not None
        inside = begins or inside and line.startswith(" " * len(key)) and line.strip() != ""
        found += [line] * inside
    if not found:
        found = [text for cell in cells if cell.source.endswith(f"\n{key}") for text in texts(cell)]
    assert found, f"{chapter} shows no line that begins with {key!r}"
    return "\n".join(found)


def tables(section):
    "The rows of the tables under a heading, each with its cells by the names of their columns."
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        head, _, *rows = [[cell.strip() for cell in line.strip("| \n").split(" | ")]
                          for line in table.splitlines()]
        for row in rows:
            assert len(row) == len(head), row
            yield dict(zip(head, row, strict=True))


def source(row):
    "The chapter that a row names, and what its lines of output begin with."
    chapter = re.search(r"\]\((nbs/\d\d[a-z]?_\w+\.ipynb)\)", row["where"]).group(1)
    return chapter, *re.findall(r"`([^`]+)`", row["where"])


def rounded(value, like):
    "A value, to as many decimals as a figure in the README shows."
    return f"{value:.{len(like.partition('.')[2])}f}"


def holds(figure, values):
    wanted = rounded(float(figure.replace(",", "")), figure)
    return any(rounded(value, figure) == wanted for value in values)


def accuracies(row):
    "A row's figures for accuracy, as its errors say they must be."
    errors, of = row["errors"].split(" of ")
    errors, of = np.array(numbers(errors)), numbers(of)[0]
    right = 1 - errors / of
    if "±" not in row["here"]:
        return [f"{value:.4f}" for value in right], errors, of
    if len(errors) > 1:
        return [f"{right.mean():.4f}", f"{right.std(ddof=1):.4f}"], errors, of
    return [f"{right[0]:.4f}"], errors, of  # the spread over folds is printed


RESULTS = [row for row in tables("Results") if "errors" in row]
SPEED = [row for row in tables("Results") if "gain" in row]


def test_every_row_of_results_names_its_source():
    assert len(RESULTS) >= 12 and len(SPEED) >= 6
    assert len(RESULTS) + len(SPEED) == len(list(tables("Results")))


@pytest.mark.parametrize("row", RESULTS, ids=lambda row: "-".join(source(row)))
def test_results_are_those_of_the_chapters(row):
    chapter, *keys = source(row)
    text = printed(chapter, *keys)
    values = numbers(text)
    figures, errors, of = accuracies(row)
    said = re.findall(r"\d\.\d{4}", row["here"])
    assert said[:len(figures)] == figures
    assert all(holds(figure, values) for figure in said[len(figures):])  # a spread over folds
    assert all(error in values for error in errors), f"{errors} in: {text}"
    cells = nbformat.read(ROOT / chapter, as_version=4).cells
    whole = [text for cell in cells for text in texts(cell)]
    shows_accuracy = all(holds(figure, values) for figure in figures)  # then the errors fix `of`
    assert shows_accuracy or of in numbers("\n".join(whole))
    n = numbers(row["n"])[0]
    assert n == len(errors) or n in values
    for column in {"parameters", "with TTA"} & row.keys():
        assert set(numbers(row[column])) <= set(values)


@pytest.mark.parametrize("row", SPEED, ids=lambda row: "-".join(source(row)))
def test_speeds_are_those_of_the_chapters(row):
    values = numbers(printed(*source(row)))
    measured = [row[column].rpartition(":")[2] for column in ("usual tool", "here")]
    usual, here = (re.findall(r"[\d,.]*\d", text) for text in measured)
    assert usual and len(usual) == len(here)
    assert all(holds(figure, values) for figure in usual + here), f"{usual}, {here} in {values}"
    gains = re.findall(r"([\d.]+) ×", row["gain"])
    assert len(gains) == len(usual)
    for gain, *pair in zip(gains, usual, here, strict=True):
        low, high = sorted(float(figure.replace(",", "")) for figure in pair)
        assert rounded(high / low, gain) == gain or holds(gain, values)
    assert re.search(r"\(\d+ runs?\b.*\)", row["gain"])


def test_a_figure_that_no_chapter_shows_is_noticed():
    row = RESULTS[0] | {"errors": "12345 of 42,000"}
    with pytest.raises(AssertionError):
        test_results_are_those_of_the_chapters(row)
    row = SPEED[0] | {"gain": "999 × faster (1 run)"}
    with pytest.raises(AssertionError):
        test_speeds_are_those_of_the_chapters(row)


# Credits and badges

@pytest.mark.parametrize("system", ["S1", "S2", "S3", "S4", "S5"])
def test_every_system_is_credited(system):
    credits = re.search(r"^## Credits\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)
    line = re.search(rf"^- \*\*{system}\*\*.*(?:\n  .*)*", credits, re.M).group()
    assert re.search(r"\b20\d\d\b", line)


def test_every_rival_figure_has_its_source():
    before = README.partition("## Credits")[0]
    prose = re.search(r"^### Rivals\n(.*?)(?=^#|\Z)", README, re.M | re.S).group(1)
    rivals = re.findall(r"^- .*(?:\n  .*)*", prose, re.M)
    assert len(rivals) >= 3 and all("](https://" in line for line in rivals)
    claim = re.search(r"^The best published .*?\n\n", before, re.M | re.S).group()
    named = re.findall(r"\.99\d+", claim)
    assert named and all(figure in prose for figure in named)


def test_badges_say_what_is_checked():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    checked = re.findall(r"3\.\d+", re.search(r"python: \[(.*)\]", workflow).group(1))
    badge = re.search(r"badge/python-([^)]*?)-\w+\)", README).group(1)
    assert re.findall(r"3\.\d+", badge) == checked
    assert "actions/workflows/ci.yml/badge.svg" in README and "badge/licence-Apache" in README
