"""The README: in step with its notebook, and true."""
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def check(root):
    return subprocess.run([sys.executable, root / "tools/readme.py", "--check"], capture_output=True, text=True)


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
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
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
    assert len(re.findall(rf"^\|[^\w\n]*{system}\b.*\|$", README, re.M)) == 1


def test_relative_links_lead_to_files():
    prose = re.sub(r"```.*?```|`[^`\n]+`", "", README, flags=re.S)
    targets = re.findall(r'\]\(([^)\s]+)|(?:src|href)="([^"]+)"', prose)
    links = {"".join(pair).partition("#")[0] for pair in targets}
    relative = sorted(link for link in links if link and not re.match(r"\w+:", link))
    assert relative
    assert [link for link in relative if not (ROOT / link).is_file()] == []


def shown(path):
    "All text in a notebook's outputs."
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text", "") + "".join(str(data) for kind, data in output.get("data", {}).items()
                                                      if kind.startswith("text/")) for output in outputs)


def test_figures_are_those_of_the_chapters():
    results = re.search(r"^## Results\n(.*?)^## ", README, re.M | re.S).group(1)
    checked = 0
    for row in re.findall(r"^\|.*\|$", results, re.M):
        links = [(link.start(), link.group(1)) for link in re.finditer(r"\]\((nbs/\d\d_\w+\.ipynb)\)", row)]
        for figure in re.finditer(r"\*\*(.+?)\*\*", row):
            if links and figure.start() > row.rindex("|", 0, -1):  # in the last column: of the next link, or the only one
                chapter = next((path for place, path in links if place > figure.start()), links[-1][1])
                assert figure.group(1) in shown(ROOT / chapter), f"{figure.group(1)} is not among the outputs of {chapter}"
                checked += 1
    assert checked >= 4
