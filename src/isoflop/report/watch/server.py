"""`isoflop watch`: the live page of a study or a run, served on this machine and protected by a token."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from isoflop.errors import StudyError
from isoflop.report import tables
from isoflop.report.clean import clean_answer, clean_rows
from isoflop.report.figure import asset, document, figure_slot, payload
from isoflop.report.figures.curves import run_loss, run_pace
from isoflop.report.law import answer_sentence, answer_warnings
from isoflop.report.page import all_figures, facts, report_figures, warnings
from isoflop.report.rows import finite
from isoflop.report.text import duration, escape, number, quantity
from isoflop.report.watch.state import OVER, SILENT_AFTER, Live, Tail, age, read_object

# The live page: the report's own figures and tables, with the progress above them.


def page(directory: Path) -> str:
    """The page without its content, which its script fetches."""
    slots = "\n".join(figure_slot(figure, i) for i, figure in enumerate(all_figures([], {}, {}), 1))
    body = (
        '<a class="skip" href="#main">Skip to the answer</a>'
        f'<header><p class=kicker>watching · {escape(directory.name)}</p><h1 id="live-title">…</h1></header>'
        '<main id="main"><p id="live-state" role="status">connecting …</p><div id="live-progress"></div>'
        '<section id="answer" aria-label="The answer so far"><p class="answer" id="live-sentence">…</p>'
        '<div id="live-summary"></div></section><section id="running"><h2>Running now</h2>'
        f'<div id="live-running"></div></section>{slots}'
        '<section id="runs"><h2>Runs</h2><div id="live-runs"></div></section></main>'
    )
    return document(f"{directory.name} · isoflop watch", body, [], script=asset("assets/watch.js"), connect="'self'")


def snapshot(live: Live) -> dict[str, Any]:
    """What the page shows of `live` now: HTML by element id, text by element id, and the figures."""
    rows, progress = clean_rows(live.rows), live.progress()
    answer = clean_answer({"study": live.study, **live.answer})
    figures = report_figures(rows, answer, live.curves())
    name = str(live.study.get("name") or live.directory.name)
    return {
        "version": live.version,
        "title": f"{100 * progress['share']:.0f} % · {name}",
        "text": {"live-title": name, "live-sentence": answer_sentence(rows, answer)},
        "html": {
            "live-progress": _study_progress(progress),
            "live-summary": tables.summary(rows, answer) + warnings(answer_warnings(answer)) + facts(rows, answer),
            "live-running": _running(live),
            "live-runs": tables.runs(rows, answer)
            if rows
            else '<p class="empty">The study has not planned a run yet.</p>',
        },
        "slots": {figure.key: [figure.caption, figure.alt] for figure in figures if figure.panels},
        "figures": payload(figures)["figures"],
    }


def _study_progress(progress: dict[str, Any]) -> str:
    percent = 100 * progress["share"]
    counts = ", ".join(f"{count} {status}" for status, count in sorted(progress["counts"].items()))
    parts = [f"{percent:.0f} % of the compute", counts or "no runs yet"]
    parts.append(f"spent {quantity(progress['flops'])} FLOPs in {duration(progress['seconds'])} of device time")
    if progress["seconds_left"] is not None:
        most = "at most " if progress.get("at_most") else ""
        parts.append(f"{most}about {duration(progress['seconds_left'])} left")
    elif progress["over"]:
        parts.append("finished")
    bar = f'<progress max="100" value="{percent:.1f}" aria-label="share of the compute"></progress>'
    return f'{bar}<p class="facts">{escape(" · ".join(parts))}</p>'


def _running(live: Live) -> str:
    body = []
    for row in live.rows:
        if row["status"] != "running":
            continue
        steps, step = row.get("steps"), row.get("step")
        share = f"{100 * step / steps:.0f} %" if finite(step) and finite(steps) and steps else "–"
        silent = row.get("silent_seconds") or 0.0
        words = f"silent for {duration(silent)}" if silent > SILENT_AFTER else "training"
        body.append(
            [
                tables.Cell(str(row["run_id"])[:10], style="code"),
                tables.Cell(str(row.get("model", "–"))),
                tables.Cell(quantity(row.get("budget")), style="number"),
                tables.Cell(quantity(row.get("learning_rate")), style="number"),
                tables.Cell(share, style="number"),
                tables.Cell(number(row.get("train_loss")), style="number"),
                tables.Cell(duration(row.get("seconds")), style="number"),
                tables.Cell(words, style="bad" if silent > SILENT_AFTER else ""),
            ]
        )
    if not body:
        return '<p class="empty">No run is training at this moment.</p>'
    heads = ("run", "model", "budget (FLOPs)", "learning rate", "done", "training loss", "time", "")
    return tables.html_table("running-table", f"At work: {len(body)}.", heads, body)


# The live page of a single run: its loss, its learning rate and speed, how far it is, what it trains.


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
        "slots": {figure.key: [figure.caption, figure.alt] for figure in figures if figure.panels},
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
        text += f", held-out loss {number(heldout)}"
        names = {"heldout_accuracy": "held-out accuracy", "probe_accuracy": "probe accuracy", "rankme": "RankMe"}
        for key, name in names.items():
            value = live.status.get(key) or last.get(key)
            text += f", {name} {number(value)}" if finite(value) else ""
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


HOST = "127.0.0.1"
UNASKED = 30.0
"""Seconds without a question after which the folder is no longer looked at."""
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Watch:
    """A server of one live page, a study's or a run's; a context manager. Without the token in `url` it says nothing.

    Args:
        directory: the folder of the study or the run; it is only read.
        port: 0 takes any free one.
        every: seconds between two looks at the folder.

    Raises StudyError when the folder is neither or the port is taken.
    """

    def __init__(self, directory: Path, *, port: int = 0, every: float = 1.0) -> None:
        is_study = (directory / "study.json").is_file()
        self._live: Live | LiveRun = Live(directory) if is_study else LiveRun(directory)
        self._every = every
        self._token = secrets.token_urlsafe(24)
        self._stop = threading.Event()
        self._asked = time.monotonic()
        self._latest: tuple[int, bytes] = (-1, b"{}")
        self._page = (page if is_study else run_page)(directory).encode()
        try:
            self._server = ThreadingHTTPServer((HOST, port), _handler(self._respond))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise StudyError(f"cannot watch on port {port}: {reason}; choose another with --port") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://{HOST}:{self.port}/?token={self._token}"

    def __enter__(self) -> Watch:
        self._look()
        for work in (self._server.serve_forever, self._keep_looking):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _keep_looking(self) -> None:
        spent = 0.0
        # The study needs the cores more: looking takes a tenth of one at most, and nothing while nobody asks.
        while not self._stop.wait(max(self._every, 9 * spent)):
            if time.monotonic() - self._asked < UNASKED:
                began = time.thread_time()
                self._look()
                spent = time.thread_time() - began

    def _look(self) -> None:
        """One look at the folder. Whatever is wrong with it is for the page to say: the watch goes on."""
        try:
            if self._live.refresh():
                shown = snapshot(self._live) if isinstance(self._live, Live) else run_snapshot(self._live)
                text = json.dumps(shown, allow_nan=False, separators=(",", ":"))
                self._latest = (self._live.version, text.encode())
        except Exception as error:
            message = {"version": -1, "trouble": f"{type(error).__name__}: {error}"}
            self._latest = (-2, json.dumps(message).encode())

    def _respond(self, path: str, host: str) -> tuple[int, str, bytes]:
        """(status, content type, body) for a request."""
        # A page of another site that makes its own name point here sends that name as the host.
        if host not in (f"{HOST}:{self.port}", f"localhost:{self.port}"):
            return 403, "text/plain", b"this server answers on its own address only\n"
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if not hmac.compare_digest(query.get("token", [""])[0].encode(), self._token.encode()):
            return 403, "text/plain", b"open the address that `isoflop watch` printed, with its token\n"
        if parts.path == "/":
            return 200, "text/html; charset=utf-8", self._page
        if parts.path == "/data":
            self._asked = time.monotonic()
            version, body = self._latest
            if query.get("since", [""])[0] == str(version):
                return 204, "application/json", b""
            return 200, "application/json", body
        return 404, "text/plain", b"there is nothing here\n"


def watch(
    directory: Path,
    *,
    port: int = 0,
    say: Callable[[str], Any] = print,
    opened: Callable[[str], Any] = lambda url: None,
) -> None:
    """Serve the live page of the study or run in `directory` until interrupted.

    `say` gets lines for people, `opened` the bare address.
    """
    with Watch(directory, port=port) as server:
        opened(server.url)
        say(f"watching {directory}\nopen {server.url}\nCtrl-C stops watching, not the training")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            say("\nno longer watching")


def _handler(respond: Callable[[str, str], tuple[int, str, bytes]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """GET only (anything else is 501 by the base class), one request a connection: none outlives the watch."""

        server_version, sys_version = "isoflop", ""
        timeout = 30

        def do_GET(self) -> None:
            status, kind, body = respond(self.path, self.headers.get("Host", ""))
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Silence: the token must not end in a log."""

    return Handler
