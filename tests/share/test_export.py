"""What is exported is loaded by the library that it is for, and computes the same."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from isoflop.errors import CheckpointError, ConfigError, ModelError
from isoflop.share import export
from isoflop.transfer import open_backbone
from tests.share.models import MOMENTS, images, relative, saved

ONE = {"depths": (1, 1, 1, 1)}
# preset, pixels, options, timm's name
TIMM = (
    ("vit_w8d2p8", 32, {}, "vit_base_patch16_224"),
    ("vit_ti16_map", 32, {"depths": (1,), "activation": "gelu_tanh"}, "vit_base_patch16_224"),
    ("vit_ti16_token", 32, {"depths": (1,), "qk_norm": True, "layer_scale": 0.5}, "vit_base_patch16_224"),
    ("vit_ti16_token", 32, {"depths": (1,), "pool": "gap", "pool_first": True}, "vit_base_patch16_224"),
    ("deit_ti16_distilled", 32, {"depths": (1,)}, "deit_tiny_distilled_patch16_224"),
    ("poolformerv2_s12", 64, {}, "poolformerv2_s12"),
    ("convformer_s18", 64, {}, "convformer_s18"),  # whose head has another eps than timm's
    ("pvt_v2_b0", 64, {"depths": (1, 2, 1, 1)}, "pvt_v2_b0"),
    (
        "nfnet_f0",
        32,
        {
            **ONE,
            "widths": (16, 32, 32, 48),
            "final_width": 64,
            "group_width": 8,
            "stem_widths": (8, 16, 32, 64),
            "activation": "gelu",
        },
        "dm_nfnet_f0",
    ),
)


@pytest.mark.parametrize(("preset", "size", "options", "name"), TIMM, ids=lambda value: str(value)[:30])
def test_timm_loads_the_folder_and_gives_the_same_logits(
    preset: str, size: int, options: dict[str, Any], name: str, tmp_path: Path
) -> None:
    ours = saved(tmp_path / "own", preset, size, **options)
    done = export(str(tmp_path / "own"), "timm", tmp_path / "out", licence="cc-by-4.0")
    assert done.difference < 1e-5
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.inference_mode():
        assert relative(theirs(images(size)), ours(images(size))) < 1e-5
    assert theirs.pretrained_cfg["architecture"] == name
    shown = timm.data.resolve_model_data_config(theirs)
    assert shown["input_size"] == (3, size, size)
    assert (tuple(shown["mean"]), tuple(shown["std"])) == MOMENTS
    assert theirs.pretrained_cfg["label_names"][1] == "bee"
    assert theirs.pretrained_cfg["license"] == "cc-by-4.0"
    back = open_backbone(tmp_path / "out")  # it is a checkpoint of ours all the same
    assert (back.preset, back.moments) == (preset, MOMENTS)
    with torch.inference_mode():
        assert relative(back.model.eval()(images(size)), ours(images(size))) < 1e-6


HUGGING_FACE = (
    ("vit_ti16_token", 32, {"depths": (1,)}, "ViTForImageClassification"),
    ("vit_w8d2p8", 32, {}, "TimmWrapperForImageClassification"),
    ("deit_ti16_distilled", 32, {"depths": (1,)}, "DeiTForImageClassificationWithTeacher"),
    ("poolformer_w8d2p8", 32, {}, "PoolFormerForImageClassification"),
    ("poolformer_s12", 32, ONE, "PoolFormerForImageClassification"),
    ("pvt_ti", 64, {**ONE, "norm_eps": 1e-5}, "PvtForImageClassification"),
    ("pvt_v2_b0", 64, {**ONE, "norm_eps": 1e-5}, "PvtV2ForImageClassification"),
    ("bit_r50x1", 32, {**ONE, "weight_eps": 1e-8}, "BitForImageClassification"),
)


@pytest.mark.parametrize(("preset", "size", "options", "kind"), HUGGING_FACE, ids=lambda value: str(value)[:30])
def test_transformers_loads_model_and_preprocessing(
    preset: str, size: int, options: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    ours = saved(tmp_path / "own", preset, size, **options)
    export(str(tmp_path / "own"), "huggingface", tmp_path / "out")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == kind
    assert theirs.config.id2label[3] == "dog"
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    grey = Image.fromarray(np.full((size + 9, size, 3), 128, dtype=np.uint8))
    pixels = processor(grey, return_tensors="pt")["pixel_values"]
    expected = (128 / 255 - torch.tensor(MOMENTS[0])) / torch.tensor(MOMENTS[1])
    torch.testing.assert_close(pixels[0], expected.view(3, 1, 1).expand(3, size, size), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert relative(theirs(images(size)).logits, ours(images(size))) < 1e-4
    back = open_backbone(tmp_path / "out")
    with torch.inference_mode():
        assert relative(back.model.eval()(images(size)), ours(images(size))) < 1e-6


@pytest.mark.parametrize(
    ("preset", "size"), [("vit_w8d1p8", 32), pytest.param("bit_r50x1", 32, marks=pytest.mark.long)]
)
def test_onnx_runtime_computes_the_same_for_any_number_of_images(preset: str, size: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    ours = saved(tmp_path / "own", preset, size, **(ONE if preset.startswith("bit") else {}))
    done = export(str(tmp_path / "own"), "onnx", tmp_path / "out")
    assert done.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for count in (1, 5):
        (found,) = session.run(["logits"], {"images": images(size, count).numpy()})
        with torch.inference_mode():
            assert relative(torch.from_numpy(found), ours(images(size, count))) < 1e-4
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["mean"]) == list(MOMENTS[0])
    assert json.loads(facts["class_names"])[0] == "ant"


def test_weights_of_any_layout_in_memory_are_saved_plainly(tmp_path: Path) -> None:
    """Convolutions lie channels-last in memory, which safetensors refuses to save."""
    ours = saved(tmp_path / "own", "nfnet_w8d2", 32)
    assert not all(tensor.is_contiguous() for tensor in ours.state_dict().values())
    export(str(tmp_path / "own"), "safetensors", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in ours.state_dict().items())
    assert open_backbone(tmp_path / "out").class_names[4] == "elk"


def test_what_a_library_cannot_express_is_told_with_what_can_be_done(tmp_path: Path) -> None:
    cases = {
        "nfnet_w8d2": ("timm", "a stem of four convolutions, which nfnet_w8d2 has not; `--to safetensors` and"),
        "poolformer_w8d2p8": ("timm", "use `--to huggingface`"),
        "fnet_s16": ("huggingface", "neither transformers nor timm has fnet_s16"),
    }
    for preset, (format, told) in cases.items():
        saved(tmp_path / preset, preset, 32, **({"depths": (1,)} if preset == "fnet_s16" else {}))
        with pytest.raises(ModelError, match=told):
            export(str(tmp_path / preset), format, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(cases)  # and nothing is left behind


def test_weights_that_would_compute_something_else_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "own", "vit_w8d1p8", 32)
    known = timm.create_model

    def wrong(*arguments: Any, **options: Any) -> Any:
        model = known(*arguments, **options)
        with torch.no_grad():
            model.head.bias.add_(0.1)
        return model

    monkeypatch.setattr("timm.create_model", wrong)
    with pytest.raises(ModelError, match="timm's vit_base_patch16_224 computes something else"):
        export(str(tmp_path / "own"), "timm", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_full_disk_a_missing_package_and_a_taken_folder_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "own", "vit_w8d1p8", 32)
    own = str(tmp_path / "own")
    with pytest.raises(ConfigError, match="one of timm, huggingface, onnx, safetensors, not 'tensorflow'"):
        export(own, "tensorflow", tmp_path / "out")
    with pytest.raises(CheckpointError, match="there is something already"):
        export(own, "timm", tmp_path / "own")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(ConfigError, match=r"pip install 'isoflop\[export\]'"):
            export(own, "onnx", tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("isoflop.share.to_timm.save_file", full)
        with pytest.raises(CheckpointError, match="cannot write here: No space left on device"):
            export(own, "timm", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
