"""Write the repository's address, held by settings.ini, into every badge, link and install cell.

A chapter's metadata gets what Kaggle needs to open it: the competition's digits, and internet.

    python tools/address.py              # write what is out of step
    python tools/address.py OWNER/REPO   # first put a fork's address into settings.ini
    python tools/address.py --check      # only say what is out of step
"""
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", "digitrec/_modidx.py",
         "nbs/*.ipynb", "web/*.html", "web/*.md", "web/package.json"]
EXTRAS = {  # what a chapter needs beside the package; never an engine
    "01": "scikit-learn-intelex",
    "03": "scikit-learn-intelex",
    "11": "keract==4.5.2",
    "12": "onnx>=1.21",
    "12b": "onnx>=1.21",
    "13b": "distributed>=2025.1",
    "14": "onnx>=1.21",
}
KAGGLE = {  # the competition "digit-recognizer"
    "dataSources": [{"sourceId": 3004, "sourceType": "competition"}],
    "isInternetEnabled": True,
    "language": "python",
    "sourceType": "notebook",
}
BADGES = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{address}/blob/{branch}/nbs/{name})\n"
    "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
    "(https://kaggle.com/kernels/welcome?src=https://github.com/{address}/blob/{branch}/nbs/{name})")
INSTALL = '''#| eval: false
from importlib.util import find_spec
from pathlib import Path
if find_spec("digitrec") is None:
    wheel = next(Path("/kaggle/input").rglob("digitrec-*.whl"), None)
    source = f"--no-index -f {{wheel.parent}} digitrec" if wheel else None
    %pip install -q {{source or "git+https://github.com/{address}"}}{extras}
if not find_spec("digitrec"): raise ImportError("Turn internet on, or attach wheels: see README")'''


def settings(root):
    "Return the address and the branch that settings.ini holds."
    parser = ConfigParser()
    parser.read(root / "settings.ini", encoding="utf-8")
    values = parser["DEFAULT"]
    return f"{values['user']}/{values['repo']}", values["branch"]


def set_address(root, address):
    "Put an address into settings.ini."
    path = root / "settings.ini"
    text = path.read_text(encoding="utf-8")
    for name, value in zip(["user", "repo"], address.split("/"), strict=True):
        text = re.sub(rf"^{name} *=.*$", f"{name} = {value}", text, flags=re.M)
    path.write_bytes(text.encode())


def written_address(root):
    "Return the address that was last written everywhere: pyproject.toml names it."
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^Repository = "https://github\.com/([^"]+)"', text, re.M).group(1)


def substitute(text, old, new):
    "Replace the address `old` in links to GitHub, Colab, badges and the documentation site."
    (old_owner, old_repo), (owner, repo) = old.split("/"), new.split("/")
    whole = r"(?![\w.-]*\w)"  # not the beginning of a longer name
    text = re.sub(rf"(github(?:\.com)?/){re.escape(old)}{whole}", rf"\g<1>{new}", text)
    site = re.escape(f"{old_owner}.github.io/{old_repo}")
    text = re.sub(rf"\b{site}{whole}", f"{owner}.github.io/{repo}", text)
    # the two lines that nbdev writes into digitrec/_modidx.py
    text = text.replace(f"'https://{old_owner}.github.io'", f"'https://{owner}.github.io'")
    return text.replace(f"'doc_baseurl': '/{old_repo}'", f"'doc_baseurl': '/{repo}'")


def install_cell(name, address):
    "Return the source of a chapter's install cell."
    extras = EXTRAS.get(name.split("_")[0])
    if extras and ">" in extras:  # which a shell would take for a redirection
        extras = f'"{extras}"'
    return INSTALL.format(address=address, extras=f" {extras}" if extras else "")


def metadata(old):
    "Return a chapter's metadata with what Kaggle needs, in the order that nbdev_clean writes."
    kaggle = {"accelerator": "none", "isGpuEnabled": False, **old.get("kaggle", {}), **KAGGLE}
    return dict(sorted({**old, "kaggle": dict(sorted(kaggle.items()))}.items()))


def chapter(text, name, address, branch):
    "Return a chapter's text with its badges, install cell and metadata as they should be."
    nb = json.loads(text)
    first, cell = nb["cells"][0], install_cell(name, address)
    title = "".join(first["source"])
    badges = BADGES.format(address=address, branch=branch, name=name)
    pattern = r"\[!\[Open in Colab\].*\n\[!\[Open in Kaggle\].*"
    title, found = re.subn(pattern, lambda _: badges, title)
    if not found:
        title = f"{title}\n\n{badges}"
    first["source"] = title.splitlines(keepends=True)
    starts = [candidate for candidate in nb["cells"][1:4]
              if "".join(candidate["source"]).startswith("#| eval: false")]
    if not starts:
        raise SystemExit(f"{name}: none of its first cells is the install cell")
    starts[0]["source"] = cell.splitlines(keepends=True)
    nb["metadata"] = metadata(nb["metadata"])
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def expected(root):
    "Yield each file that holds the address, its text, and the text that it should have."
    address, branch = settings(root)
    old = written_address(root)
    for path in sorted(path for pattern in FILES for path in root.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        new = substitute(text, old, address)
        if re.match(r"\d\d\w?_", path.name):
            new = chapter(new, path.name, address, branch)
        yield path, text, new


def main(arguments, root=ROOT):
    check = "--check" in arguments
    if check and len(arguments) > 1:
        sys.exit(f"found {arguments}; expected either --check or OWNER/REPO")
    for address in set(arguments) - {"--check"}:
        if not re.fullmatch(r"[\w-]+/[\w.-]+", address):
            sys.exit(f"found {address!r}; expected OWNER/REPO")
        set_address(root, address)
    changed = [(path, new) for path, text, new in expected(root) if new != text]
    if check and changed:
        names = ", ".join(path.relative_to(root).as_posix() for path, _ in changed)
        sys.exit(f"Out of step with settings.ini: {names}. Run `python tools/address.py`.")
    for path, new in changed:
        path.write_bytes(new.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
