"""`python -m tests.lowest`: tests of what meets our dependencies, beside their lowest versions that we allow.

PyTorch, torchvision and timm stay as they are: they would be five more gigabytes. What is lowest is read from
pyproject.toml; the packages go into a folder of their own, which stands before the others on the path.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv" / "lowest"
AS_THEY_ARE = {"torch", "torchvision", "timm", "tensorboard"}
TESTS = (
    *("tests/config", "tests/laws/test_fit_table.py", "tests/cli/test_command_line.py"),
    *("tests/data/test_sources.py", "tests/data/test_decode.py", "tests/transfer/test_few_shot.py"),
)


def lowest() -> list[str]:
    """The lowest versions of pyproject.toml, as `name==version.*`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", line) for line in lines]
    assert all(found)
    return [f"{match[1]}=={match[2]}.*" for match in found if match and match[1] not in AS_THEY_ARE]


def main() -> int:
    wanted = lowest()
    done = FOLDER / "installed.txt"
    if not done.is_file() or done.read_text(encoding="utf-8").split() != wanted:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        done_with = subprocess.run([*install, "--target", str(FOLDER), *wanted], capture_output=True, text=True)
        if done_with.returncode:  # what it says of our other packages, which stay as they are, is not of interest
            print(done_with.stderr, file=sys.stderr)
            return done_with.returncode
        done.write_text("\n".join(wanted), encoding="utf-8")
    print("beside", *wanted)
    path = os.pathsep.join([str(FOLDER), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not long", "-p", "no:cacheprovider", *TESTS]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
