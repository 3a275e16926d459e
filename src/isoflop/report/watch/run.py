"""The live page of a single run: its loss, its learning rate and speed, how far it is, what it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.errors import StudyError
from isoflop.report.figures.run import run_loss, run_pace
from isoflop.report.rows import finite
from isoflop.report.shell import asset, document, figure_slot, payload
from isoflop.report.text import duration, escape, number, quantity
from isoflop.report.watch.state import OVER, SILENT_AFTER, age, read_object
from isoflop.report.watch.tail import Tail


class LiveRun:
    """Reads a run's folder again and again, only what is new. Writes nothing.

    Raises StudyError when the folder is neither a run nor (as it came here) a study.
    """

    def __init__(self, directory: Path) -> None:
        if not any((directory / name).exists() for name in ("identity.json", "status.json", "attempts")):
            raise StudyError(
                f"{directory}: not a study (no study.json) and not a run (no status.json); give the folder that "
                "`isoflop study run` or `isoflop train` writes to"
            )
        self.directory = directory
        self.config: dict[str, Any] = {}
        self.status: dict[str, Any] = {}
        self.tail = Tail(directory)
        self.version = 0
        self._seen: Any = None

    def refresh(self) -> bool:
        """Look again; whether anything has changed since the last look."""
        self.config = read_object(self.directory / "config.json") or self.config
        self.status = read_object(self.directory / "status.json") or self.status
        changed = self.tail.update()
        # A run that falls silent is news as well.
        seen = [self.config, self.status, self.silence() > SILENT_AFTER]
        if changed or seen != self._seen:
            self._seen, changed = seen, True
            self.version += 1
        return changed

    @property
    def state(self) -> str:
        """What the run says it is doing."""
        return str(self.status.get("state") or "planned")

    def silence(self) -> float:
        """Seconds since the last word of a run that is not over."""
        return 0.0 if self.state in OVER else age(self.directory)

    def steps(self) -> tuple[int | None, int | None]:
        """Steps done and steps in all, where they are known."""
        done = [v for v in (self.status.get("step"), self.tail.last.get("step")) if finite(v)]
        total = self.status.get("steps") or self.config.get("steps")
        return (int(max(done)) if done else None), (int(total) if finite(total) and total > 0 else None)


def run_page(directory: Path) -> str:
    """The page without its content, which its script fetches."""
    slots = "\n".join(figure_slot(figure, i) for i, figure in enumerate((run_loss({}, ""), run_pace(_NOTHING)), 1))
    body = (
        '<a class="skip" href="#main">Skip to the figures</a>'
        f'<header><p class=kicker>watching a run · {escape(directory.name)}</p><h1 id="live-title">…</h1></header>'
        '<main id="main"><p id="live-state" role="status">connecting …</p><div id="live-progress"></div>'
        f'<p class="answer" id="live-sentence">…</p>{slots}'
        '<section id="trains"><h2>What is trained</h2><div id="live-config"></div></section></main>'
    )
    return document(f"{directory.name} · isoflop watch", body, [], script=asset("assets/watch.js"), connect="'self'")


_NOTHING: dict[str, list[Any]] = {"images": [], "learning_rate": [], "images_per_second": []}


def run_snapshot(live: LiveRun) -> dict[str, Any]:
    """What the page shows of `live` now, in the form of a study's snapshot."""
    name = _model(live)
    figures = [run_loss(live.tail.curve(), name), run_pace(live.tail.pace())]
    done, total = live.steps()
    share = 1.0 if live.state == "done" else min(done / total, 1.0) if done and total else 0.0
    return {
        "version": live.version,
        "title": f"{100 * share:.0f} % · {name}",
        "text": {"live-title": name, "live-sentence": _sentence(live)},
        "html": {"live-progress": _progress(live, share), "live-config": _config(live.config)},
        "slots": {figure.key: [figure.empty, figure.caption, figure.alt] for figure in figures},
        "figures": payload(figures)["figures"],
    }


def _model(live: LiveRun) -> str:
    model = live.config.get("model")
    return str(model.get("name") if isinstance(model, Mapping) else live.directory.name)


def _sentence(live: LiveRun) -> str:
    last = live.tail.last
    parts = {"done": "Finished", "running": "Training", "planned": "Not begun", "stopped": "Stopped"}
    text = parts.get(live.state, live.state.capitalize())
    if finite(last.get("loss")):
        text += f": training loss {number(last['loss'])} after {quantity(last.get('images'))} images"
    heldout = live.status.get("heldout_loss") or last.get("heldout_loss")
    if finite(heldout):
        accuracy = live.status.get("heldout_accuracy") or last.get("heldout_accuracy")
        text += f", held-out loss {number(heldout)}"
        text += f", held-out accuracy {number(accuracy)}" if finite(accuracy) else ""
    error = str(live.status.get("error") or "")
    return f"{text}. {error}" if error else f"{text}."


def _progress(live: LiveRun, share: float) -> str:
    done, total = live.steps()
    seconds = live.status.get("seconds") if live.state in OVER else live.tail.last.get("seconds")
    parts = [f"{done:,} of {total:,} steps" if done is not None and total else "no step yet"]
    if finite(seconds):
        parts.append(f"{duration(seconds)} so far" if live.state not in OVER else f"in {duration(seconds)}")
    if live.state not in OVER and finite(seconds) and done and total and total > done:
        parts.append(f"about {duration(seconds / done * (total - done))} left")
    if live.tail.restarts:
        parts.append(f"{len(live.tail.restarts)} restarts")
    if live.silence() > SILENT_AFTER:
        parts.append(f"silent for {duration(live.silence())}")
    bar = f'<progress max="100" value="{100 * share:.1f}" aria-label="share of the steps"></progress>'
    return f'{bar}<p class="facts">{escape(" · ".join(parts))}</p>'


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return '<p class="empty">The run has not said yet what it trains.</p>'
    items = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(_flat(value))}</dd>"
        for key, value in config.items()
        if value not in (None, {}, [], "")
    )
    return f"<dl>{items}</dl>"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items() if v not in (None, {}, [], ""))
    return str(value)
