"""Distillation is DeiT's: timm's own losses are the oracle; the teacher stays as it was and out of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.task import LogitDistillationTask, TokenDistillationTask
from torch import Tensor

from isoflop.config import DistilledConfig, parse
from isoflop.errors import CheckpointError, ConfigError, ModelError
from isoflop.models import Backbone, create_model
from isoflop.objectives import Distilled, load_teacher, make_objective
from isoflop.objectives.distilled import teacher_moments

SIZE: dict[str, Any] = {"image_size": 32, "num_classes": 5}
TOKEN: dict[str, Any] = {"depths": (1,), "widths": (24,), "mlp_widths": (48,), "heads": (2,), "drop_path": 0.0}


def student() -> Backbone:
    return create_model("deit_ti16_distilled", seed=0, **SIZE, **TOKEN)


def teacher() -> Backbone:
    model = create_model("nfnet_w8d1", seed=1, **SIZE)
    with torch.no_grad():
        model.head.weight.mul_(100)  # type: ignore[union-attr,operator]
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])


def nothing(stream: str, count: int) -> Tensor:
    raise AssertionError("distillation draws nothing")


def save(state: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


class Wrapped(torch.nn.Module):
    """One of our models as timm's tasks want one."""

    pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}  # noqa: RUF012 - as timm has it

    def __init__(self, model: Backbone, distilled: bool = False) -> None:
        super().__init__()
        self.model, self.distilled = model, distilled
        self.num_classes, self.in_chans = model.num_classes, model.in_channels

    def set_distilled_training(self, enable: bool) -> None:
        self.distilled = enable

    def forward(self, images: Tensor) -> Any:
        return self.model.distilled_logits(images) if self.distilled else self.model(images)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_through_the_token_the_loss_is_that_of_timm(kind: str) -> None:
    model, (images, labels) = student(), batch()
    task = TokenDistillationTask(
        Wrapped(model), Wrapped(teacher()), torch.nn.CrossEntropyLoss(),
        distill_type=kind, task_loss_weight=0.3, temperature=2.0, verbose=False,
    )  # fmt: skip
    ours = Distilled(model, teacher(), kind=kind, share=0.7, temperature=2.0)  # type: ignore[arg-type]
    assert ours(images, labels, nothing).item() == pytest.approx(task(images, labels)["loss"].item(), rel=1e-6)


def test_through_the_logits_the_loss_is_that_of_timm() -> None:
    model, (images, labels) = create_model("vit_w8d1p8", seed=0, **SIZE), batch()
    task = LogitDistillationTask(
        Wrapped(model), Wrapped(teacher()), torch.nn.CrossEntropyLoss(),
        task_loss_weight=0.9, temperature=3.0, verbose=False,
    )  # fmt: skip
    ours = Distilled(model, teacher(), kind="soft", through="logits", share=0.1)
    assert ours(images, labels, nothing).item() == pytest.approx(task(images, labels)["loss"].item(), rel=1e-6)


def test_a_hard_imitation_is_cross_entropy_with_the_teachers_answer() -> None:
    model, (images, labels) = create_model("vit_w8d1p8", seed=0, **SIZE), batch()
    ours = Distilled(model, teacher(), kind="hard", through="logits", share=1.0)
    with torch.no_grad():
        answers = teacher().eval()(images).argmax(dim=1)
        expected = -model(images).log_softmax(dim=1)[torch.arange(6), answers].mean()
    assert ours(images, labels, nothing).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_teacher_is_frozen_and_in_no_checkpoint() -> None:
    ours = Distilled(student(), teacher())
    before = {name: tensor.clone() for name, tensor in ours.teacher.state_dict().items()}
    assert all(name.startswith("backbone.") for name in ours.state_dict())
    assert all(name.startswith("backbone.") for name, _ in ours.named_parameters())
    ours.train()
    assert not ours.teacher.training
    ours(*batch(), nothing).backward()
    torch.optim.SGD(ours.parameters(), lr=1.0).step()
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.teacher.state_dict().items())
    assert all(p.grad is None for p in ours.teacher.parameters())
    assert next(ours.to(torch.float64).teacher.parameters()).dtype == torch.float64, "it follows the student"


def test_held_out_images_are_judged_by_their_labels() -> None:
    ours, (images, labels) = Distilled(student(), teacher()).eval(), batch()
    found = ours.evaluate(images, labels, nothing)
    with torch.no_grad():
        logits = ours.backbone(images)
    assert found["accuracy"] == (logits.argmax(dim=1) == labels).sum()
    assert found["loss"].item() == pytest.approx(torch.nn.CrossEntropyLoss(reduction="sum")(logits, labels).item())


def configured(**values: Any) -> DistilledConfig:
    return parse({"name": "distilled", "through": "logits", **values}, DistilledConfig)


def test_a_teacher_is_a_run_or_a_preset_with_weights_or_timms(tmp_path: Path) -> None:
    run, learner = tmp_path / "run", create_model("vit_w8d1p8", seed=0, **SIZE)
    run.mkdir()
    save(teacher().state_dict(), run / "model.safetensors")
    (run / "config.json").write_text(json.dumps({"model": {"name": "nfnet_w8d1", "revision": 2}, "steps": 1}))
    named = configured(teacher="nfnet_w8d1", teacher_weights=str(run / "model.safetensors"))
    network = timm.create_model("resnet18", num_classes=5)
    save({f"model.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "resnet.safetensors")
    timms = configured(teacher="timm:resnet18", teacher_weights=str(tmp_path / "resnet.safetensors"))
    images = batch()[0]
    with torch.no_grad():
        expected = teacher().eval()(images)
        for config in (configured(teacher=str(run)), named):
            objective = make_objective(config, learner)
            assert isinstance(objective, Distilled)
            assert torch.equal(objective.teacher(images), expected)
        assert torch.allclose(load_teacher(timms, learner).eval()(images), network.eval()(images), atol=1e-6)


def test_a_teacher_sees_images_as_they_were_normalised_when_it_learnt(tmp_path: Path) -> None:
    run, learner, pixels = tmp_path / "run", create_model("vit_w8d1p8", seed=0, **SIZE), torch.rand(6, 3, 32, 32)
    run.mkdir()
    save(teacher().state_dict(), run / "model.safetensors")
    (run / "config.json").write_text(json.dumps({"model": {"name": "nfnet_w8d1", "revision": 2}, "steps": 1}))
    ours, theirs = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), ((0.1, 0.6, 0.5), (0.3, 0.2, 0.5))
    (run / "data.json").write_text(json.dumps({"mean": theirs[0], "std": theirs[1]}))

    def normalised(moments: Any) -> Tensor:
        mean, std = (torch.tensor(m).view(1, 3, 1, 1) for m in moments)
        return (pixels - mean) / std

    seen: list[Tensor] = []
    for moments in (ours, theirs):
        objective = make_objective(configured(teacher=str(run)), learner, moments=moments)
        assert isinstance(objective, Distilled)
        objective.teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        objective(normalised(moments), batch()[1], nothing)
        assert not [name for name in objective.state_dict() if not name.startswith("backbone.")]
    torch.testing.assert_close(seen[0], normalised(theirs))
    assert torch.equal(seen[1], normalised(theirs)), "nothing is done where nothing differs"
    assert teacher_moments(configured(teacher="timm:resnet18")) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_what_cannot_teach_or_be_taught_is_told(tmp_path: Path) -> None:
    learner = create_model("vit_w8d1p8", seed=0, **SIZE)
    with pytest.raises(ModelError, match=r"vit_w8d1p8 has no distillation token: use `objective.through` = logits"):
        Distilled(learner, teacher())
    with pytest.raises(ModelError, match="has num_classes = 7, the student 5"):
        Distilled(learner, create_model("nfnet_w8d1", image_size=32, num_classes=7), through="logits")
    with pytest.raises(ConfigError, match=r"not the folder of a finished run, and a preset needs"):
        load_teacher(configured(teacher="nfnet_w8d1"), learner)
    with pytest.raises(ConfigError, match=r"`objective.teacher` = nfnet_fo: there is .* did you mean `nfnet_f"):
        load_teacher(configured(teacher="nfnet_fo", teacher_weights="x.safetensors"), learner)
    with pytest.raises(ConfigError, match="timm:resnet18: has 1000 classes, the images have 5"):
        load_teacher(configured(teacher="timm:resnet18"), learner)
    with pytest.raises(ConfigError, match=r"`objective.teacher` = timm:resnt18: timm has no"):
        load_teacher(configured(teacher="timm:resnt18"), learner)
    with pytest.raises(ConfigError, match=r"`objective.teacher_weights` is for a preset"):
        load_teacher(configured(teacher=str(tmp_path), teacher_weights="x.safetensors"), learner)
    with pytest.raises(CheckpointError, match=r"not a finished run \(no model.safetensors\)"):
        load_teacher(configured(teacher=str(tmp_path)), learner)
    save(learner.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="not the weights of nfnet_w8d1 for 5 classes and images of 32x32"):
        load_teacher(configured(teacher="nfnet_w8d1", teacher_weights=str(tmp_path / "weights.safetensors")), learner)
    with pytest.raises(ModelError, match="one class each"):
        make_objective(configured(teacher="nfnet_w8d1"), learner, has_several_labels=True)
