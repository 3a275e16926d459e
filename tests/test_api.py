"""The public API is what `tests/api.txt` says: who changes a name or a signature sees it, and says it in CHANGELOG.md.

python tests/test_api.py        # writes api.txt anew
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import isoflop

FILE = Path(__file__).with_name("api.txt")


def public() -> Iterator[str]:
    """A line for each public name of the package and of its public subpackages, with its signature."""
    for name in ("isoflop", *(f"isoflop.{package}" for package in isoflop._PACKAGES)):
        module = importlib.import_module(name)
        for key in sorted(getattr(module, "__all__", ())):
            if key == "__version__" or inspect.ismodule(value := getattr(module, key)):
                continue
            yield f"{name}.{key}{_signature(value)}"
            if inspect.isclass(value) and value.__module__.startswith("isoflop"):
                for method, found in sorted(vars(value).items()):
                    if not method.startswith("_") and (callable(found) or isinstance(found, classmethod | property)):
                        yield f"{name}.{key}.{method}{_signature(getattr(value, method))}"


def _signature(value: object) -> str:
    """Names, kinds and defaults; annotations are mypy's business, and differ from one Python to the next."""
    if not callable(value):
        return ""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return re.sub(r" at 0x[0-9a-f]+|<factory>", "", text)


def test_the_public_api_is_as_written_down() -> None:
    written, found = FILE.read_text(encoding="utf-8").splitlines(), list(public())
    gone, new = sorted(set(written) - set(found)), sorted(set(found) - set(written))
    assert (gone, new) == ([], []), (
        "the public API has changed: if it was meant to, run `python tests/test_api.py` and say so in CHANGELOG.md"
    )
    assert written == found


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in public()), encoding="utf-8")
