"""Write README.md from nbs/index.ipynb; with --check, only say whether the two are in step."""
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
HEADER = ("<!-- Written from nbs/index.ipynb by tools/readme.py: "
          "edit the notebook, not this file. -->\n\n")
CODE = r"(?P<code>^ *(?P<fence>```+|~~~+).*?^ *(?P=fence)|`[^`\n]+`)|"
START = r'(?P<start>\]\(|^\[[^\]]+\]: +|\b(?:src|srcset|href)=")'
LINK = re.compile(CODE + START + r'(?!\w+:|[#/])(?P<path>[^)\s"]+)', re.S | re.M)
BLANK_LINES = re.compile(CODE + r"\n([ \t]*\n){2,}", re.S | re.M)
CONFIG = Config({
    "NbConvertBase": {"display_data_priority": ["text/markdown", "image/png", "text/plain"]},
    "ExtractOutputPreprocessor": {"extract_output_types": {"image/png"}}})


def from_root(markdown):
    "Turn links that start in nbs/ into links that start in the root; leave code alone."
    def moved(m):
        return m["code"] or m["start"] + posixpath.normpath("nbs/" + m["path"])
    return LINK.sub(moved, markdown)


def render():
    "Return the README's text, and the bytes of each picture that it shows by their path."
    nb = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    nb.metadata.language_info = {"name": "python"}
    nb.cells = [cell for cell in nb.cells
                if cell.cell_type != "raw" and not re.match(r"#\| *hide", cell.source)]
    pictures, alts = 0, {}
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = from_root(cell.source)
            continue
        shown = not re.search(r"^#\| *echo: *false", cell.source, re.M)
        alt = "".join(re.findall(r"^#\| *fig-alt: *(.+)", cell.source, flags=re.M))
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
        cell.metadata["transient"] = {"remove_source": not (shown and cell.source)}
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = from_root(data["text/markdown"])
            elif "image/png" in data:
                pictures += 1
                output.metadata["filename"] = f"readme_{pictures}.png"
                link = f"](nbs/images/readme_{pictures}.png)"
                alts[f"![png{link}"] = f"![{alt}{link}"
    resources = {"output_files_dir": "nbs/images"}
    text, extras = MarkdownExporter(config=CONFIG).from_notebook_node(nb, resources)
    for bare, described in alts.items():
        text = text.replace(bare, described)
    text = HEADER + BLANK_LINES.sub(lambda m: m["code"] or "\n\n", text).strip() + "\n"
    return text, {ROOT / path: data for path, data in extras["outputs"].items()}


def main(check):
    text, pictures = render()
    files = {ROOT / "README.md": text.encode(), **pictures}
    changed = [path for path, data in files.items()
               if not path.exists() or path.read_bytes() != data]
    stale = [path for path in (ROOT / "nbs/images").glob("readme_*.png") if path not in files]
    if check and changed + stale:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in changed + stale)
        sys.exit(f"Out of step with nbs/index.ipynb: {names}. Run `python tools/readme.py`.")
    for path in changed:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[path])
    for path in stale:
        path.unlink()


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
