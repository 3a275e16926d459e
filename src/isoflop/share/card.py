"""The model card of an export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.errors import CheckpointError
from isoflop.escapes import markdown_code, markdown_text
from isoflop.runs.directory import FOUND, read_status
from isoflop.share.subject import Subject
from isoflop.train import read_journal
from isoflop.train.forecast import train_flops_per_image
from isoflop.transfer.protocols import markdown

USES = {
    "timm": """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```""",
    "huggingface": """```python
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = AutoModelForImageClassification.from_pretrained("FOLDER")
```""",
    "onnx": """```python
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
(outputs,) = session.run(None, {"images": images})  # float32 (batch, channels, height, width), normalised
```""",
    "safetensors": """```sh
isoflop transfer FOLDER --data SOURCE
```""",
}
# A path of this machine: its folders are nobody's business. Not the paths within URLs, nor relative ones.
ABSOLUTE = re.compile(r"(?<![\w/.~-])(?:~|/[^\s/\"`?*:]+)/(?:[^\s/\"`?*]+/)*([^\s/\"`?*]+)")


def model_card(subject: Subject, format: str, agreement: str, licence: str | None) -> str:
    """Markdown with the front matter that model hubs read; of local paths only the last name."""
    parts = [
        _front_matter(subject, format, licence),
        f"# {markdown_text(subject.name)}\n",
        _model(subject),
        f"## Use\n\n{USES[format]}\n\n{agreement}\n",
        _preparation(subject),
        *_training(subject),
        *_study(subject),
        *_transfer(subject),
        _limits(subject),
        _provenance(subject),
    ]
    return ABSOLUTE.sub(r"…/\1", "\n".join(part for part in parts if part))


def _front_matter(subject: Subject, format: str, licence: str | None) -> str:
    library = {"timm": "timm", "huggingface": "transformers"}.get(format)
    lines = [
        f"license: {licence}" if licence else "",
        f"library_name: {library}" if library else "",
        "pipeline_tag: image-classification" if subject.classifies else "pipeline_tag: image-feature-extraction",
        "tags:\n- isoflop",
    ]
    return "---\n" + "".join(f"{line}\n" for line in lines if line) + "---\n"


def _model(subject: Subject) -> str:
    from isoflop.models import cost

    model, description = subject.model, subject.description
    counted = cost(
        description.preset,
        num_classes=description.num_classes,
        image_size=description.image_size,
        in_channels=description.channels,
        **description.options,
    )
    height, width = description.image_size
    changed = ", ".join(markdown_text(f"{name} = {_short(value)}") for name, value in description.options.items())
    gives = f"{description.num_classes} logits" if subject.classifies else f"{model.num_features} features, no logits"
    return (
        f"isoflop's {markdown_code(description.preset)}{f' with {changed}' if changed else ''}: "
        f"{counted.parameters:,} parameters, "
        f"{counted.flops:,} FLOPs forward for an image of {height}x{width} pixels and {description.channels} channels; "
        f"{gives}.\n"
    )


def _preparation(subject: Subject) -> str:
    if subject.description.moments is None:
        return ""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in subject.description.moments)
    return f"Pixels in 0 … 1 are normalised with mean {mean} and standard deviation {std}.\n"


def _training(subject: Subject) -> Iterator[str]:
    config, data, run = subject.config, subject.data, subject.run
    if config is None or data is None or run is None:
        return
    status = read_status(run)
    unique = "which never repeat" if data.images is None else f"of {data.images:,} different ones"
    lines = [
        f"- Source: {markdown_code(data.uri)} (fingerprint {markdown_code(data.fingerprint)}), "
        f"{data.num_classes} classes.",
        f"- Training saw {config.images:,} images, {unique}, at {config.data.image_size} px; augmentation "
        f"`{config.data.augment}`.",
        f"- Held out, and never trained on: at most {config.data.heldout:,} images, chosen by seed {config.data.seed}.",
    ]
    measured = {name: getattr(status, name) for name in FOUND} if status else {}
    told = [
        f"{name.removeprefix('heldout_').replace('_', ' ')} {v:.4f}" for name, v in measured.items() if v is not None
    ]
    if told:
        lines.append(f"- On the held-out images: {', '.join(told)}.")
    yield "## Data\n\n" + "\n".join(lines) + "\n"
    yield "## Compute\n\n" + "\n".join(_compute(subject)) + "\n"
    tables = config.model_dump(mode="json", exclude_defaults=True)
    yield f"## Recipe\n\nWhat differs from isoflop's defaults:\n\n```json\n{json.dumps(tables, indent=1)}\n```\n"


def _compute(subject: Subject) -> Iterator[str]:
    config, data, run = subject.config, subject.data, subject.run
    assert config is not None and data is not None and run is not None  # noqa: PT018
    each = train_flops_per_image(config, data.num_classes, data.channels)
    yield (
        f"- {each * config.images:.3g} FLOPs of training, counted: {each:.3g} an image, three forward passes' worth; a "
        "FLOP is half a multiply-add."
    )
    last = next((row for row in reversed(read_journal(run)) if "device_hours" in row), {})
    environment = _json(run / "env.json")
    if last:
        device = markdown_text(environment.get("device", "a device"))
        yield f"- {last['device_hours']:.3g} device-hours, measured, on {device}."
        watts = "the data sheet's watts" if environment.get("device") != "cpu" else "100 W, assumed of a CPU,"
        yield f"- {last['energy_kwh']:.3g} kWh, estimated: {watts} times the hours, nothing for hosts and cooling."


def _study(subject: Subject) -> Iterator[str]:
    """What the laws of the study that the run belongs to said of it before it was trained, and what came out."""
    family, answer = _answer(subject)
    selected = answer.get("selected") or {}
    if subject.run and selected.get("run_id") == subject.run.resolve().name and (found := selected.get("accuracy")):
        low, high = found["interval"]
        part = "test images" if found["part"] == "test" else "held-out images, which have chosen the run"
        yield (
            f"## Study\n\n- Handed over by a study. Accuracy {found['accuracy']:.3f} on {found['images']:,} {part}, "
            f"{100 * found['level']:.0f} % interval {low:.3f}–{high:.3f}.\n"
        )
    if family is None:
        return
    found, final = answer["families"][family], answer.get("finals", {}).get(family, {})
    low, high = found["interval"]
    lines = [
        f"- It is the answer of a study for {answer['target_flops']:.3g} training FLOPs, of the family "
        f"{markdown_code(family)}.",
        f"- Before it was trained, the law predicted {found['predicted_loss']:.4g}, {100 * found['level']:.0f} % "
        f"interval {low:.4g}–{high:.4g}"
        + (
            "; no other family could be compared."
            if found["p_best"] is None
            else f"; probability that its family is the best of those that trained: {found['p_best']:.2f}."
        ),
    ]
    if final.get("measured_loss") is not None:
        inside = "inside" if final["inside_interval"] else "outside of"
        lines.append(f"- Measured: {final['measured_loss']:.4g}, {inside} the interval.")
    if found.get("exponents"):
        lines.append(f"- Exponents of the law: `{json.dumps(found['exponents'])}`.")
    yield "## Law\n\n" + "\n".join(lines) + "\n"


def _answer(subject: Subject) -> tuple[str | None, dict[str, Any]]:
    """The family that the run is the answer of, and the answer of its study; None where it is none."""
    if subject.run is None or subject.run.resolve().parent.name != "runs":
        return None, {}
    run = subject.run.resolve()
    answer = _json(run.parent.parent / "answer.json")
    families = answer.get("families", {})
    return next((name for name, found in families.items() if found["run_id"] == run.name), None), answer


def _transfer(subject: Subject) -> Iterator[str]:
    """Results of `isoflop transfer` that lie beside the run, or in the study that it belongs to."""
    if subject.run is None:
        return
    run = subject.run.resolve()
    rows: list[dict[str, Any]] = []
    for path in sorted({*run.glob("transfer*/**/result.json"), *run.parent.glob("transfer/*/result.json")}):
        found = _json(path)
        if Path(str(found.get("checkpoint", ""))).expanduser().resolve() == run:
            rows += found.get("rows", [])
    family, answer = _answer(subject)
    rows += [row for row in answer.get("transfer", {}).get("rows", []) if row.get("family") == family]
    if rows:
        yield f"## Transfer\n\n{markdown(rows)}"


def _limits(subject: Subject) -> str:
    lines = ["- Measured on held-out images of its own training data alone, where nothing else is said above."]
    if subject.run is None:
        lines = ["- What it was trained on is not known to isoflop beyond what its origin says."]
    if not subject.classifies:
        lines.append("- It has no trained classifier: its features are for probes and fine-tuning.")
    if subject.data is not None and subject.data.uri.startswith("fractals"):
        lines.append("- Its training images are generated fractals: it has never seen a photograph.")
    return "## Limits\n\n" + "\n".join(lines) + "\n"


def _provenance(subject: Subject) -> str:
    import isoflop

    lines = [f"- Exported by isoflop {isoflop.__version__}."]
    if subject.run is not None:
        environment, identity = _json(subject.run / "env.json"), _json(subject.run / "identity.json")
        names = [name for name in ("isoflop", "torch", "python") if name in environment]
        versions = markdown_text(", ".join(f"{name} {environment[name]}" for name in names))
        run = identity.get("run", subject.name)
        lines.append(f"- Run {markdown_code(run)}, the hash of its configuration; trained with {versions}.")
    lines += [
        f"- {markdown_text(name)}: {markdown_text(_short(value))}"
        for name, value in subject.description.origin.items()
        if value is not None
    ]
    return "## Provenance\n\n" + "\n".join(lines) + "\n"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error
    return found


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
