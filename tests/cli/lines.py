"""Commands as somebody types them: what comes of one, and whether one would be understood."""

import json
from itertools import pairwise

import pytest

from isoflop.cli import main
from isoflop.config import TransferConfig, load, load_any


def isoflop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), *capsys.readouterr()


def check_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The verb and its options are known to its help; its configuration is valid."""
    options = [word for word in arguments if word.startswith("-")]
    plain = [word for word in arguments if word not in options]
    file = next((i for i, word in enumerate(plain) if "." in word or "/" in word or word.isupper()), len(plain))
    with pytest.raises(SystemExit) as caught:
        main([*plain[:file], "--help"])
    assert caught.value.code == 0, arguments
    help_text = capsys.readouterr().out
    assert not plain or "Commands:" not in help_text, f"not a verb: {arguments}"
    assert all(option in help_text for option in options)
    if file < len(plain) and plain[file].endswith(".toml"):
        load_any(plain[file], [word for word in plain[file + 1 :] if "=" in word])
    protocols = [value for option, value in pairwise(arguments) if option in ("-p", "--protocol")]
    if plain[:1] == ["transfer"] and not {"detect", "segment"} & set(protocols):
        load(None, [f"protocols={json.dumps(protocols)}", *(w for w in plain if "=" in w)], TransferConfig)
