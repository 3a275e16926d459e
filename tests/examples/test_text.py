"""Text goes through the same grammar; the example learns and spends the same compute on every mixer."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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


def test_pieces_of_files_are_held_out_by_their_place(text: ModuleType, tmp_path: Path) -> None:
    for name in ("json", "xml"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_bytes(bytes(range(128)) * 5)
    train, heldout = text.standard_library(tmp_path)
    assert (len(train), len(heldout), train.class_names) == (16, 4, ("json", "xml"))
    assert train.read(train.order.locate(torch.arange(3).numpy(), 0)[1])[0].shape == (3, 1, 1, 64)


def test_the_example_runs_at_toy_size(text: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, byte in (("json", 40), ("xml", 90)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_bytes(bytes([byte, 32]) * 32 * 20)
    rows = text.compare(text.standard_library(tmp_path), 1e8, batch_size=8, learning_rates=(3e-3,), seeds=1)
    assert [row["mixer"] for row in rows] == list(text.MIXERS)
    assert all(row["steps"] >= 1 and 0.0 <= row["accuracy"] <= 1.0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(text.MIXERS)
