"""Text goes through the same grammar; the example learns and spends the same compute on every mixer."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "text.py"


@pytest.fixture(scope="module")
def text() -> ModuleType:
    spec = importlib.util.spec_from_file_location("text_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["text_example"] = module
    spec.loader.exec_module(module)
    return module


def test_every_mixer_reads_tokens_through_an_embedding(text: ModuleType) -> None:
    tokens = torch.randint(256, (2, 1, 1, text.LENGTH), generator=torch.Generator().manual_seed(0)).float()
    for mixer in text.MIXERS:
        model = text.text_model(mixer, num_classes=4, width=16)
        torch.nn.init.normal_(model.head.weight)
        logits = model(tokens)
        other = tokens.clone()
        other[0, 0, 0, 5] = (other[0, 0, 0, 5] + 1) % 256
        assert logits.shape == (2, 4)
        changed = (model(other) != logits).any(dim=1)
        assert changed.tolist() == [True, False], mixer
        assert text.train_flops(model) > 0


def packages(root: Path, contents: dict[str, bytes]) -> Path:
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def test_pieces_of_files_are_held_out_by_their_place_and_languages_are_balanced(
    text: ModuleType, tmp_path: Path
) -> None:
    contents = {"sklearn/a.py": bytes(range(128)) * 5, "torchgen/packaged/b.yaml": b"x" * 64 * 100}
    train, heldout = text.bundled(packages(tmp_path, contents))
    assert (len(train), len(heldout), train.class_names) == (16, 4, ("Python", "YAML"))
    assert np.bincount(train.classes).tolist() == [8, 8]
    assert train.read(train.order.locate(torch.arange(3).numpy(), 0)[1])[0].shape == (3, 1, 1, 64)


def test_the_example_runs_at_toy_size(text: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = {"sklearn/a.py": b"( " * 32 * 20, "torchgen/packaged/b.yaml": b"Z " * 32 * 20}
    texts = text.bundled(packages(tmp_path, contents))
    rows = text.compare(texts, 1e8, batch_size=8, learning_rates=(3e-3,), seeds=1)
    assert [row["mixer"] for row in rows] == list(text.MIXERS)
    assert all(row["steps"] >= 1 and 0.0 <= row["accuracy"] <= 1.0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(text.MIXERS)
