"""What one GPU makes of isoflop, in at most eight minutes: one JSON file and one Markdown table.

    python benchmarks/gpu.py IMAGES --out gpu-results
    python benchmarks/gpu.py IMAGES --parts models feed       # some of the parts
    python benchmarks/gpu.py IMAGES --rehearse                # all of it on a CPU, with tiny sizes

| part | what it does | seconds at most |
|---|---|---|
| machine | GPU, driver, PyTorch, CUDA; the published peak, and the measured one | 30 |
| tests | `pytest -m gpu` | 60 |
| study | a short study on the real images of IMAGES, four runs at a time | 125 |
| models | training steps beside timm's, 224 px: eager, then compiled; model FLOPs utilisation | 165 |
| mae | a masked autoencoder's step beside those that it saves | 50 |
| feed | images a second: decoded and augmented, and brought to the device | 50 |
| papers | `papers/nfnet.toml` at fifty times its compute; only with `--parts papers` | 540 |

Each part is a process of its own, which is killed at its limit. A part that fails or runs out of time is written down
as such, with the rows that it had; the others go on. What a part printed is in `NAME.log`.

IMAGES is a folder of real images: Parquet, tar shards or classes, or a folder of several of these. The study takes
the first by name. CIFAR-10's Parquet (19 MB) will do, or tar shards of small photographs
(`isoflop data convert`, which keeps their bytes). More than 40 MB gains nothing.

Nothing is fetched. A bare machine with PyTorch, torchvision, NumPy and timm gets the rest from a folder of wheels.
It is filled where there is a network, for the Python of that machine (here 3.11 on Linux):

    pip wheel --no-deps -w wheels .
    pip download -d wheels --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64 \\
        pydantic hypothesis pytest pytest-timeout fsspec safetensors pillow
    pip download -d wheels --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64 --no-deps \\
        simplejpeg pyarrow scipy scikit-learn joblib threadpoolctl

and there (leave out of `wheels` what that machine has):

    pip install --no-index --no-deps wheels/*.whl
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

Row = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = ("mae", "models", "data", "isoflop.study")  # what a rehearsal imports once for all parts


def machine(args: argparse.Namespace) -> Iterator[Row]:
    import timm
    import torch

    yield {"what": "system", "value": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"}
    yield {"what": "torch, timm", "value": f"{torch.__version__}, {timm.__version__}"}
    yield {"what": "CUDA, cuDNN", "value": f"{torch.version.cuda}, {torch.backends.cudnn.version()}"}
    from isoflop.train.device import describe_machine, has_bfloat16, identify, product_rate

    told = describe_machine(args.out)
    for device in told["devices"]:
        yield {"what": device["name"], "value": device["model"]}
    yield {"what": "cores, memory GiB", "value": f"{told['processes']}, {(told['memory_bytes'] or 0) / 2**30:.0f}"}
    yield {"what": "missing for extras", "value": {name: gone for name, gone in told["extras"].items() if gone}}
    known = identify(torch.cuda.get_device_name()) if args.device == "cuda" else None
    yield {"what": "published peak, bfloat16, TFLOP/s", "value": known.matrix_flops / 1e12 if known else None}
    for precision in ("float32", "bfloat16"):
        kind, device = getattr(torch, precision), torch.device(args.device)
        rate, _ = product_rate(device, kind, 768 if kind == torch.float32 or has_bfloat16(device) else 128)
        yield {"what": f"measured matrix products, {precision}, TFLOP/s", "value": rate / 1e12}


def tests(args: argparse.Namespace) -> Iterator[Row]:
    import pytest

    rows: list[Row] = []

    class Reports:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or not report.passed:
                rows.append({"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration})

    files = [p for p in sorted((REPOSITORY / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in p.read_text("utf-8")]
    os.chdir(REPOSITORY)
    code = pytest.main(["-m", "gpu", "-rs", "-p", "no:cacheprovider", *map(str, files)], plugins=[Reports()])
    yield from rows
    if code:
        raise RuntimeError(f"pytest ended with {code!r}")


STUDY: Row = {
    "batch_size": 128,
    "study": {"budgets": [4e11, 1e12, 2.5e12], "target_budget": 5e12, "workers": 4},
    "data": {"heldout": 2000, "augment": "crop_flip"},
    "schedule": {"name": "constant", "warmup": 20, "cooldown": 0.2},
    "families": {
        "vit": {
            "sizes": ["vit_w64d4p8", "vit_w96d4p8", "vit_w128d4p8"],
            "learning_rates": [1e-3, 2e-3],
            "optim": {"name": "adamw", "weight_decay": 1e-2},
        },
        "nfnet": {
            "sizes": ["nfnet_w32d2", "nfnet_w48d2", "nfnet_w64d2"],
            "learning_rates": [0.2, 0.5],
            "optim": {"name": "sgd", "momentum": 0.9, "agc": 0.01, "weight_decay": 2e-5},
        },
    },
}
REHEARSED: Row = {
    "batch_size": 16,
    "study": {"budgets": [8e7, 1e8, 1.25e8], "target_budget": 1.5e8, "workers": 1},
    "data": {"heldout": 16, "augment": "crop_flip"},
    "schedule": {"name": "constant", "warmup": 1},
    "families": {"vit": {"sizes": ["vit_w4d1p8", "vit_w6d1p8", "vit_w8d1p8"], "learning_rates": [8e-3]}},
}


def sources(folder: Path) -> list[tuple[str, int]]:
    """The data sets in `folder`, or in the folders in it, and the size at which each is trained on."""
    from isoflop.data.decode import read_header
    from isoflop.data.inspection import guess_uri
    from isoflop.data.opening import open_records

    below = sorted(path for path in folder.iterdir() if path.is_dir())
    stored = [path for path in below if any(path.glob("*.parquet")) or any(path.glob("*.tar"))]
    found = []
    for path in stored or [folder]:
        records = open_records(guess_uri(str(path)), "train")
        header = read_header(records.read(0))
        side = min(header.height, header.width)
        found.append((records.uri, 32 if side <= 32 else 64 if side <= 64 else 224))
    return found


def study(args: argparse.Namespace) -> Iterator[Row]:
    from isoflop.config import StudyConfig

    (source, size), output = sources(args.images)[0], args.out / "study"
    shutil.rmtree(output, ignore_errors=True)  # a measurement begins anew
    raw = copy.deepcopy(REHEARSED if args.rehearse else STUDY)
    raw |= {"precision": args.precision, "device": args.device, "tensorboard": False, "transfer": {"protocols": []}}
    raw["study"] |= {"name": "gpu", "output": output}
    raw["data"] |= {"source": source, "image_size": size}
    yield from measured(StudyConfig.model_validate(raw), args, source)


PAPER, PAPER_SCALE = "nfnet", 50.0
PAPER_CHANGES = ("batch_size=128", "study.workers=4", "families.nfnet.sizes=3", "families.vit.sizes=3")
REHEARSED_SCALE = 0.0005
REHEARSED_CHANGES = ("batch_size=8", "data.image_size=8", "data.heldout=16", "data.augment=none")


def papers(args: argparse.Namespace) -> Iterator[Row]:
    from isoflop.config import load_study

    source, _ = sources(args.images)[0]
    changes = REHEARSED_CHANGES if args.rehearse else PAPER_CHANGES
    output = args.out / PAPER  # what is done there is not trained again: the study may take several calls
    changes += (f"data.source={source}", f"study.output={output}", f"precision={args.precision}")
    file, scale = REPOSITORY / "papers" / f"{PAPER}.toml", REHEARSED_SCALE if args.rehearse else PAPER_SCALE
    config = load_study(file, (*changes, f"device={args.device}"), scale).config
    yield from measured(config, args, source)


def measured(config: Any, args: argparse.Namespace, source: str) -> Iterator[Row]:
    """The runs of a study, and its utilisation."""
    import torch

    from isoflop.errors import Preempted
    from isoflop.runs.results import read_results
    from isoflop.study import run_study
    from isoflop.train.device import matrix_rate

    output = config.directory
    began, stopped = time.monotonic(), ""
    try:
        run_study(config, stop=lambda: time.monotonic() > args.deadline - 15)
    except Preempted as error:
        stopped = str(error)
    wall, rows = time.monotonic() - began, read_results(output)
    kept = ("family", "model", "budget", "role", "status", "learning_rate", "steps", "heldout_loss", "heldout_accuracy")
    for row in rows:
        done = bool(row["seconds"] and row["images"])
        yield {name: row[name] for name in kept} | {
            "seconds": row["seconds"],
            "images/s": row["images"] / row["seconds"] if done else None,
            "error": row["error"] or None,
        }
    flops = sum(row["train_flops"] for row in rows if row["status"] == "done" and row["train_flops"])
    peak = matrix_rate(torch.device(args.device))[0]
    yield {
        "family": "all",
        "model": f"{len(rows)} runs of {source}",
        "seconds": wall,
        "utilisation": flops / wall / peak,
    }
    if stopped:
        raise TimeoutError(f"the study was stopped after {wall:.0f} s: {stopped}")


def models(args: argparse.Namespace) -> Iterator[Row]:
    import models
    import torch

    from isoflop.train.device import matrix_rate

    peak = matrix_rate(torch.device(args.device))[0]
    names = ("vit_s16_token", "vit_l16_token", "nfnet_f0", "poolformer_s12", "caformer_s18")
    if args.rehearse:
        names = ("vit_s16_token",)
    options = argparse.Namespace(
        batch=2 if args.rehearse else args.batch,
        image_size=32 if args.rehearse else 224,
        repeats=1 if args.rehearse else 10,
        device=args.device,
        threads=torch.get_num_threads(),
        cpu_seconds=False,
        compile=False,
        limit=0.0,
    )
    eager: dict[str, Row] = {}
    for name in names:
        try:
            eager[name] = row = models.compare(name, args.precision, options)
        except RuntimeError as error:  # no room for the batch
            yield {"model": name, "kind": "eager", "batch": options.batch, "error": first_line(error)}
            continue
        ours = row["seconds"]["ours"]
        timm = min(seconds for variant, seconds in row["seconds"].items() if variant.startswith("timm"))
        yield beside(name, "eager", options.batch, ours, timm, row["tera_flops_per_second"] * 1e12 * ours / peak) | {
            "memory / timm's": row["memory"]
        }
    for name, row in eager.items():
        took = {}
        for variant in ("ours compiled",) if args.rehearse else ("ours compiled", "timm compiled"):
            left = args.deadline - time.monotonic() - 5
            options.limit = left if args.rehearse else min(45.0, left)
            took[variant] = models.in_own_process(variant, name, args.precision, options) if left > 5 else None
        ideal = row["tera_flops_per_second"] * 1e12 * row["seconds"]["ours"] / peak
        yield beside(name, "compiled", options.batch, took["ours compiled"], took.get("timm compiled"), ideal)


def beside(name: str, kind: str, batch: int, ours: float | None, timm: float | None, ideal: float) -> Row:
    """A row of two steps; `ideal` is what the step would take at the peak. None is a variant that was given up."""
    return {
        "model": name,
        "kind": kind,
        "batch": batch,
        "ours, ms": ours and ours * 1e3,
        "timm, ms": timm and timm * 1e3,
        "ratio": timm / ours if ours and timm else None,
        "images/s": batch / ours if ours else None,
        "utilisation": ideal / ours if ours else None,
        "timm's utilisation": ideal / timm if timm else None,
    }


def mae(args: argparse.Namespace) -> Iterator[Row]:
    import mae
    import torch

    model, batch, share, steps, warmup = ("mae_b16", 1, 8, 1, 1) if args.rehearse else ("mae_l16", 64, 1, 10, 3)
    masked, permitted = 0.0, mae.multiply_adds("masked", model, share)
    for name in mae.CONTENDERS:
        try:
            contender = mae.Contender(name, model, batch, share, args.device, args.precision)
        except ImportError as error:  # of the peer
            yield {"step": name, "error": first_line(error)}
            continue
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken = sorted([contender.step() for _ in range(warmup + steps)][warmup:])
        seconds = taken[len(taken) // 2]
        masked = masked or seconds
        yield {
            "step": name,
            "model": model,
            "batch": batch,
            "ms": seconds * 1e3,
            "masked is faster by": seconds / masked,
            "multiply-adds permit": mae.multiply_adds(name, model, share) / permitted,
            "peak, GiB": torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else None,
        }
        del contender


def feed(args: argparse.Namespace) -> Iterator[Row]:
    from data import photographs

    from isoflop.train.device import usable_cores

    many = 1 if args.rehearse else max(1, min(16, usable_cores()) - 1)
    with tempfile.TemporaryDirectory() as place:
        for number, photo in enumerate(photographs(None, 500, 400, 10 if args.rehearse else 40)):
            path = Path(place) / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo)
        found = [(source, size, "crop_flip") for source, size in sources(args.images)]
        found.append((f"folder:{place}", 224, "inception"))
        for source, size, augment in found:
            for workers in (0, many):
                yield {
                    "data": source.replace(f"folder:{place}", "JPEGs of 500×400 px, made here"),
                    "pixels": size,
                    "augment": augment,
                    "workers": workers,
                    "images/s, made": fed(args, source, size, augment, workers, "cpu"),
                    f"images/s, on {args.device}": fed(args, source, size, augment, workers, args.device),
                }


def fed(args: argparse.Namespace, source: str, size: int, augment: str, workers: int, device: str) -> float:
    """Images a second, after the first batch, of what a run reads; normalized on the device unless that is the CPU."""
    import torch

    from isoflop.data import Feed, batches, open_source
    from isoflop.train.device import normalize

    batch, seconds = (16, 0.1) if args.rehearse else (256, 2.0)
    opened = open_source(source, split="train", image_size=size, heldout=2)
    made = batches(opened, seed=0, batch_size=batch, start_step=0, stop_step=10**6, augment=augment, workers=workers)
    began = 0.0
    for number in count():
        if number == 0:
            feed = iter(Feed(made, torch.device(device)))
        images = next(feed).images
        if device == "cuda":
            normalize(images, opened, images.device)
        if number == 0:
            began = time.perf_counter()
        elif time.perf_counter() - began > seconds:
            break
    if device == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    del feed
    made.close()
    return number * batch / took


PARTS: dict[str, tuple[Callable[[argparse.Namespace], Iterator[Row]], float]] = {
    "machine": (machine, 30),
    "tests": (tests, 60),
    "study": (study, 125),
    "models": (models, 165),
    "mae": (mae, 50),
    "feed": (feed, 50),
    "papers": (papers, 540),
}
EXTRA = ("papers",)  # only where they are named


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


# A part in a process of its own.


def write_rows(part: Callable[[argparse.Namespace], Iterable[Row]], args: argparse.Namespace, rows: Path) -> None:
    """Runs in the part's process: its rows as lines of JSON, as they come; why it failed as the last."""
    os.setsid()  # what it starts ends with it
    log = os.open(rows.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    with rows.open("w", encoding="utf-8") as file:
        try:
            for row in part(args):
                print(json.dumps(row, default=str), file=file, flush=True)
        except BaseException as error:
            traceback.print_exc()
            print(json.dumps({"failed": first_line(error)}), file=file)
            raise SystemExit(1) from None


def children_seconds() -> float:
    """Of the processor, by the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_part(name: str, part: Callable[..., Iterable[Row]], limit: float, args: argparse.Namespace) -> Row:
    """What the part gave: status (done, failed, out of time), reason, seconds and rows."""
    limit *= 20 if args.rehearse else 1  # of a machine that may be busy with other things
    rows, began, cpu = args.out / f"{name}.rows", time.monotonic(), children_seconds()
    rows.unlink(missing_ok=True)
    args.deadline = began + limit
    context = multiprocessing.get_context("fork" if args.rehearse else "spawn")  # CUDA does not survive a fork
    process = context.Process(target=write_rows, args=(part, args, rows), name=name)
    process.start()
    assert process.pid
    try:
        process.join(limit)
        in_time = process.exitcode is not None
    finally:
        with suppress(ProcessLookupError, PermissionError):  # it had not made a group of its own yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    text = rows.read_text("utf-8") if rows.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    failures = [line["failed"] for line in lines if "failed" in line]
    reason = failures[0] if failures else "" if process.exitcode == 0 else f"exit status {process.exitcode}"
    status = "out of time" if not in_time else "failed" if reason else "done"
    return {
        "status": status,
        "reason": reason if in_time else f"killed at its limit of {limit:g} s",
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(children_seconds() - cpu, 1),
        "rows": [line for line in lines if "failed" not in line],
    }


def markdown(results: dict[str, Any]) -> str:
    """The results of all parts, a table each."""
    text = ["# isoflop on one GPU" + (" (a rehearsal on a CPU)" if results["rehearsal"] else "")]
    for name, part in results["parts"].items():
        text += ["", f"## {name}: {part['status']} in {part['seconds']} s ({part['cpu_seconds']} of processors)", ""]
        if part["reason"]:
            text += [part["reason"], ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if columns:
            text += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        text += [f"| {' | '.join(cell(row.get(column)) for column in columns)} |" for row in part["rows"]]
    return "\n".join(text) + "\n"


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, metavar="IMAGES", help="a folder of real images")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part not in EXTRA],
                        metavar="PART")  # fmt: skip
    parser.add_argument("--batch", type=int, default=64, help="of the models beside timm's")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes")
    args = parser.parse_args()
    args.images, args.out = args.images.resolve(), args.out.resolve()
    if not args.images.is_dir():
        parser.error(f"{args.images}: no such folder of images")
    args.device, args.precision = ("cpu", "float32") if args.rehearse else ("cuda", "bfloat16")
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("ISOFLOP_CACHE", str(args.out / "cache"))
    if args.rehearse:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
        for module in HEAVY:
            import_module(module)
    elif not import_module("torch").cuda.is_available():
        parser.error("PyTorch finds no CUDA device here; --rehearse runs on a CPU")
    results: Row = {"rehearsal": args.rehearse, "command": sys.argv, "parts": {}}
    for name in args.parts:
        results["parts"][name] = found = run_part(name, *PARTS[name], args)
        print(f"{name}: {found['status']} in {found['seconds']} s {found['reason']}".rstrip(), flush=True)
        (args.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (args.out / "gpu.md").write_text(markdown(results), encoding="utf-8")
    print("\n" + markdown(results))
    return int(any(found["status"] != "done" for found in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
