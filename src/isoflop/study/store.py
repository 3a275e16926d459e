"""The directory of a study: its identity, its runs, and the table of their results."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from isoflop.config import FamilyConfig, StudyConfig, TransferConfig, config_hash, stored_study
from isoflop.config.run import DEFAULT_BATCH
from isoflop.data.records import is_fingerprint_of
from isoflop.errors import CheckpointError, IsoflopError, StudyError
from isoflop.runs.directory import Status, read_identity, read_status
from isoflop.runs.files import remove_partial_files, to_json, write_json
from isoflop.runs.journal import read_attempts
from isoflop.runs.results import Row, publish, read_document, read_results, read_whole, write_results
from isoflop.study.adaptive import NOTHING_BESIDE, UNCHOSEN, Ladder, Overheads
from isoflop.study.executors.worker import read_target
from isoflop.study.planned import PlannedRun

ANSWER_PRICES = "answer_prices.json"


class Store:
    """Reads and writes one study directory. Everything in it but `study.json` and `runs/` can be made again."""

    def __init__(self, directory: Path, target: TransferConfig | None = None) -> None:
        self.directory = directory
        self.target = target  # what runs are judged by, if not by their held-out loss
        self.peak: float | None = None  # FLOPs a second of a worker, which utilisation is a share of

    def __repr__(self) -> str:
        return f"Store({str(self.directory)!r}, {len(self.rows())} runs)"

    def begun_at(self, config: StudyConfig) -> str:
        """Where the data lay when the study in the directory began, if it is that of `config` but for the places of its
        data; "" otherwise."""
        if not (self.directory / "study.json").exists():
            return ""
        found, config = read_whole(self.directory, "study.json"), self.as_begun(config)
        if found["study"] == config_hash(config) or not _is_same(found, config):
            return ""
        return str(found.get("begun_at") or found["config"]["data"]["source"])

    def as_begun(self, config: StudyConfig) -> StudyConfig:
        """`config` with what it leaves open as the study in the directory was begun: precision, batch size, target; and
        without the families that the limit has left out."""
        if not (self.directory / "study.json").exists():
            return config
        try:
            begun = read_whole(self.directory, "study.json")["config"]
            precision, batch_size = begun.get("precision", "float32"), begun.get("batch_size", DEFAULT_BATCH)
            target = begun["study"]["target_budget"]
        except (StudyError, KeyError, TypeError, AttributeError):  # damaged, as `claim` will say
            return config
        if config.precision == "auto" and precision in ("float32", "bfloat16"):
            config = config.model_copy(update={"precision": precision})
        if config.batch_size is None and isinstance(batch_size, int) and batch_size > 0:
            config = config.model_copy(update={"batch_size": batch_size})
        if config.study.target_budget is None and isinstance(target, int | float) and target > 0:
            config = config.model_copy(update={"study": config.study.model_copy(update={"target_budget": target})})
        families = {
            name: _as_begun(family, begun.get("families", {}).get(name)) for name, family in config.families.items()
        }
        config = config.model_copy(update={"families": families})
        left_out = self.ladder().left_out if config.study.limited else {}
        kept = {name: family for name, family in config.families.items() if name not in left_out}
        return config.model_copy(update={"families": kept}) if 0 < len(kept) < len(config.families) else config

    def claim(self, config: StudyConfig, fingerprint: str) -> None:
        """Makes the directory that of `config` on data of that `fingerprint`, or checks that it is; StudyError when it
        is another study's. Data that have moved are the same."""
        remove_partial_files(self.directory)
        identity = config_hash(config)
        values = config.model_dump(mode="json")
        document = {"study": identity, "name": config.study.name, "data": fingerprint, "config": values}
        if (self.directory / "study.json").exists():
            found = read_whole(self.directory, "study.json")
            if found["study"] != identity and not _is_same(found, config):
                raise StudyError(
                    f"{self.directory}: belongs to another study ({found['name']}, "
                    f"{found['study']}; this one is {identity}); "
                    "set study.output to another folder, or delete this one"
                )
            before = str(found.get("data") or self._data_of_runs())
            if before and not is_fingerprint_of(before, fingerprint):
                raise StudyError(
                    f"{self.directory}: the data have changed since the study started "
                    f"(fingerprint {before}, now {fingerprint}); set study.output to another folder"
                )
            if found["study"] != identity:
                moved = {"study": found["study"], "begun_at": self.begun_at(config)}
                self.write("study.json", {**document, **moved})
            return
        strangers = sorted(p.name for p in self.directory.iterdir() if not p.name.startswith("."))
        if strangers:
            raise StudyError(
                f"{self.directory}: not empty and not a study (it holds {strangers[0]}); "
                "set study.output to another folder"
            )
        self.write("study.json", document)

    def _data_of_runs(self) -> str:
        """The fingerprint that the runs were trained on, for studies of earlier versions, which do not say it."""
        for path in sorted(self.directory.glob("runs/*/identity.json")):
            with suppress(CheckpointError):
                if found := read_identity(path.parent):
                    return found.data
        return ""

    def run_directory(self, run_id: str) -> Path:
        return self.directory / "runs" / run_id

    def trunk_directory(self, run: PlannedRun) -> Path | None:
        return self.directory / "trunks" / run.trunk_id if run.trunk_id else None

    def drop_trunks(self) -> None:
        """Frees the space of shared steps; they are trained again if ever needed."""
        shutil.rmtree(self.directory / "trunks", ignore_errors=True)

    def write(self, name: str, value: Any) -> None:
        """Replaces a JSON file of the study; StudyError when the storage refuses."""
        if name == "answer.json":
            publish(self.directory, name, to_json(value))
            return
        try:
            write_json(self.directory / name, value)
        except OSError as error:
            raise StudyError(f"{self.directory / name}: cannot write: {error.strerror}") from error

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the study; StudyError says what to run when it is not there."""
        return read_document(self.directory, name)

    def prices(self) -> dict[tuple[str, str], float]:
        """Seconds of training on an image by (family, preset), as measured when the study was planned; or nothing."""
        path = self.directory / "prices.json"
        if not path.exists():
            return {}
        try:
            rows = read_whole(self.directory, "prices.json")["prices"]
            return {(row["family"], row["model"]): float(row["seconds_per_image"]) for row in rows}
        except (StudyError, KeyError, TypeError, ValueError):
            warnings.warn(f"{path}: damaged; prices are measured again", stacklevel=2)
            return {}

    def overheads(self) -> Overheads | None:
        """What the study takes beside its runs, as planned when it began; None where nobody has planned it, or where
        an earlier version did, which counted nothing."""
        if not (self.directory / "prices.json").exists():
            return None
        with suppress(StudyError, KeyError, TypeError, ValueError):
            found = read_whole(self.directory, "prices.json")["overheads"]
            share = found["share"] if found["share"] is None else float(found["share"])
            latency = {str(name): float(ms) for name, ms in found["latency_ms"].items()}
            seconds = float(found["preparation"]), float(found["evaluation"])
            return Overheads(*seconds, int(found["threads"]), share, latency)
        return NOTHING_BESIDE

    def write_prices(
        self,
        seconds: Mapping[tuple[str, str], float],
        peak: float | None = None,
        overheads: Overheads = NOTHING_BESIDE,
        ladder: Ladder = UNCHOSEN,
    ) -> None:
        """Keeps what the plan was made with and the ladder that it chose: with another a study that was stopped might
        go another way. The peak of a worker stays that of the machine on which the study began."""
        with suppress(StudyError, KeyError, TypeError, ValueError):
            peak = float(read_whole(self.directory, "prices.json")["peak"])
        self.peak = peak
        rows = [{"family": f, "model": m, "seconds_per_image": s} for (f, m), s in seconds.items()]
        planned = {"prices": rows, "peak": peak, "overheads": asdict(overheads), **asdict(ladder)}
        self.write("prices.json", planned)

    def answer_prices(self) -> dict[str, float]:
        """Seconds of a worker in which answers train on an image, by family/model, as measured after the ladder."""
        with suppress(StudyError, AttributeError, TypeError, ValueError):
            return {str(k): float(v) for k, v in read_whole(self.directory, ANSWER_PRICES)["seconds"].items()}
        return {}

    def write_answer_prices(self, seconds: Mapping[str, float]) -> None:
        """Keeps `answer_prices`: with others a study that was stopped might train another answer."""
        self.write(ANSWER_PRICES, {"seconds": dict(seconds)})

    def ladder(self) -> Ladder:
        """The ladder that was chosen when the study was planned; without rungs where nobody has, or an earlier version
        did."""
        with suppress(StudyError, KeyError, TypeError, ValueError, AttributeError):
            stored = read_whole(self.directory, "prices.json")
            found = tuple(float(budget) for budget in stored["rungs"])
            left_out = {str(name): str(why) for name, why in stored.get("left_out", {}).items()}
            if found and all(0 < low < high for low, high in pairwise((*found, math.inf))):
                return Ladder(found, int(stored.get("fewer", 0)), left_out)
        return UNCHOSEN

    def row(self, run: PlannedRun, unique_images: int | None, failure: str = "") -> Row:
        """The results row of `run` as its directory tells it now; `failure` when its worker gave it up."""
        try:
            status = read_status(self.run_directory(run.run_id))
        except CheckpointError:  # a run that goes on, or ends again, writes it anew
            status = None
        state = "failed" if failure else status.state if status else "planned"
        status = status or Status("", 0, 0, math.nan)
        target = status.heldout_loss
        if self.target is not None:
            measured = read_target(self.run_directory(run.run_id), self.target)
            target = measured["error"] if measured else None
            state = "running" if state == "done" and measured is None else state
        return {
            "run_id": run.run_id,
            "family": run.family,
            "model": run.model,
            "status": state,
            "role": run.role,
            "flops_per_image": run.flops_per_image,
            "images": run.images,
            "unique_images": unique_images,
            "train_flops": run.train_flops,
            "budget": run.budget,
            "learning_rate": run.config.optim.learning_rate,
            "recipe": run.recipe,
            "seed": run.config.seed,
            "batch_size": run.config.batch_size,
            "steps": run.config.steps,
            "trunk_steps": shared_steps(self.run_directory(run.run_id)) if status.state else None,
            "heldout_loss": status.heldout_loss,
            "heldout_accuracy": status.heldout_accuracy,
            "probe_accuracy": status.probe_accuracy,
            "rankme": status.rankme,
            "target": target,
            "seconds": _core_seconds(run, status) if status.state else None,
            "utilisation": self._utilisation(run, status),
            "parameters": run.parameters,
            "error": failure or status.error,
        }

    def _utilisation(self, run: PlannedRun, status: Status) -> float | None:
        if not self.peak or not status.step or not status.seconds > 0:
            return None
        trained = status.step * run.config.batch_size * run.flops_per_image
        return float(f"{trained / (_core_seconds(run, status) * self.peak):.4g}")

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Replaces `results.csv`, one row a run."""
        write_results(self.directory, rows)

    def rows(self) -> list[Row]:
        """The results table as written last, as `read_results`."""
        return read_results(self.directory)


def _core_seconds(run: PlannedRun, status: Status) -> float:
    """Seconds of one worker: a run on several threads takes so many times what the clock says."""
    return status.seconds * (run.config.threads or 1)


def _as_begun(family: FamilyConfig, begun: Any) -> FamilyConfig:
    """A family that leaves its model to its weights, with the one that they had when the study was begun."""
    if not family.start or isinstance(family.sizes, tuple):
        return family
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        if begun["start"]["weights"] == family.start.weights:
            found = FamilyConfig.model_validate({"sizes": begun["sizes"], "model": begun["model"]})
            return family.model_copy(update={"sizes": found.sizes, "model": found.model})
    return family


def _is_same(found: dict[str, Any], config: StudyConfig) -> bool:
    """Whether a `study.json` is of `config` but for the places of its data."""
    try:
        before = stored_study(found["config"])
    except (IsoflopError, KeyError, TypeError):  # of another version
        return False
    return config_hash(before, places=False) == config_hash(config, places=False)


def shared_steps(directory: Path) -> int:
    """The steps that the run in `directory` found trained on its trunk instead of training them."""
    first = next((row for rows in read_attempts(directory, lambda file, line: None) for row in rows), None)
    return int(first["step"]) if first and first.get("origin") == "trunk" else 0


def finite_loss(row: Row) -> float:
    """What a finished run is judged by (its held-out loss, or the error on the target), +inf of any other."""
    loss = row.get("target", row["heldout_loss"])
    return loss if row["status"] == "done" and loss is not None and math.isfinite(loss) else math.inf
