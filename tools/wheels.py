"""Make a folder of wheels, from which a chapter's first cell installs where there is no internet.

    python tools/wheels.py FOLDER                  # for Kaggle: Python 3.12 on 64-bit Linux
    python tools/wheels.py FOLDER --python 3.13    # for another Python
    python tools/wheels.py FOLDER --no-deps        # the package's own wheel only
"""
import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from address import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def pip(*arguments):
    program = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*program, *arguments], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="the Python that will install them")
    parser.add_argument("--no-deps", action="store_true", help="leave out what digitrec requires")
    parser.add_argument("--no-build-isolation", action="store_true",
                        help="build with the setuptools at hand")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    isolation = ["--no-build-isolation"] if options.no_build_isolation else []
    with tempfile.TemporaryDirectory() as spare:
        pip("wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", spare, str(ROOT))
        for old in options.folder.glob("digitrec-*.whl"):
            old.unlink()
        [built] = Path(spare).iterdir()
        wheel = Path(shutil.copy(built, options.folder))
    if not options.no_deps:
        target = ["--python-version", options.python, "--implementation", "cp"]
        target += ["--only-binary", ":all:"]
        target += [part for platform in PLATFORMS for part in ("--platform", platform)]
        wanted = [str(wheel), *sorted(set(EXTRAS.values()))]
        pip("download", "--dest", str(options.folder), *target, *wanted)
    wheels = list(options.folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.0f} MB, in {options.folder}")


if __name__ == "__main__":
    main()
