"""The live page in a real browser: it changes as the study does, and runs nothing that the study says."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.report.watch import Watch

pytestmark = pytest.mark.page


def write_study(
    folder: Path, rows: list[dict[str, Any]], curves: dict[str, Any], done: int, name: str = "live"
) -> None:
    """A study of `rows` planned runs of which the first `done` have finished and the next is at work."""
    config = {"study": {"budgets": [1e10, 3e10, 1e11], "target_budget": 6e12}}
    (folder / "study.json").write_text(json.dumps({"name": name, "config": config}))
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        blank = {"status": "planned", "heldout_loss": "", "heldout_accuracy": "", "seconds": "", "error": ""}
        writer.writerows(row | blank for row in rows)
    for i, row in enumerate(rows[: done + 1]):
        run, curve = folder / "runs" / row["run_id"], curves[row["run_id"]]
        (run / "attempts" / "1").mkdir(parents=True, exist_ok=True)
        keys = ("step", "images", "train_loss")
        lines = zip(*(curve[key][: 120 if i < done else 60] for key in keys), strict=True)
        (run / "attempts" / "1" / "metrics-0001.jsonl").write_text(
            "".join(
                json.dumps({"kind": "train", "step": s + 1, "images": x, "loss": v, "seconds": 1}) + "\n"
                for s, x, v in lines
            )
        )
        status = {key: row[key] for key in ("heldout_loss", "heldout_accuracy", "seconds", "error")} if i < done else {}
        state = row["status"] if i < done else "running"
        (run / "status.json").write_text(json.dumps({"state": state, "step": 1, "steps": row["steps"], **status}))


class Visit:
    """An open live page, and everything that it complained about or asked of others."""

    def __init__(self, browser: Any, server: Watch) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.set_default_timeout(0)  # the time limit of the test is enough
        self.noise: list[str] = []
        self.page.on("console", lambda m: self.noise.append(m.text))
        self.page.on("pageerror", lambda e: self.noise.append(str(e)))
        self.page.on("dialog", lambda d: self.noise.append(d.message))
        own = (f"http://127.0.0.1:{server.port}/", "data:", "blob:")
        self.page.on("request", lambda r: r.url.startswith(own) or self.noise.append(r.url))
        self.page.goto(server.url)

    def until(self, text: str, where: str = "main") -> None:
        self.page.locator(where).get_by_text(text).first.wait_for()


FRONTIER = "document.querySelector('[data-figure=frontier]')"


def drag(visit: Visit, figure: str) -> None:
    """Zooms as a reader does, with the mouse."""
    slot = visit.page.locator(f"[data-figure={figure}]")
    slot.scroll_into_view_if_needed()
    box = slot.bounding_box()
    visit.page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.4 * box["height"])
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
    visit.page.mouse.up()
    visit.page.wait_for_timeout(300)


def test_the_page_changes_while_the_study_runs(chromium: Any, planted: Any, tmp_path: Path) -> None:
    rows = [row for row in planted.rows if row["role"] == "ladder"][:120]
    write_study(tmp_path, rows, planted.curves, 0)
    with Watch(tmp_path, every=0.2) as server:
        visit = Visit(chromium, server)
        visit.until("No answer yet: 0 of 120 runs have finished.")
        assert visit.page.locator("#frontier").is_hidden()
        write_study(tmp_path, rows, planted.curves, 80)
        visit.until("So far: with 6×10¹² FLOPs of training")
        visit.page.locator("[data-figure=frontier] .cartesianlayer").wait_for()
        counted = visit.page.locator("section[data-slot]:visible .count").all_inner_texts()
        assert counted == [f"Figure {k}" for k in range(1, len(counted) + 1)]
        drag(visit, "frontier")
        zoom = visit.page.evaluate(f"{FRONTIER}.layout.yaxis.range")
        visit.page.locator("#runs-table th button", has_text="held-out loss").click()
        write_study(tmp_path, rows, planted.curves, 119)
        visit.until("117 finished runs", "#answer")
        assert visit.page.evaluate(f"{FRONTIER}.layout.yaxis.range") == zoom, "an update must not undo a zoom"
        assert visit.page.evaluate(f"{FRONTIER}.layout.yaxis.tickmode") == "auto"
        assert visit.page.locator("#runs-table th[aria-sort=ascending]").inner_text().startswith("held-out loss")
        assert visit.page.locator("#running-table tbody tr").count() == 1
        assert visit.noise == []
        visit.page.close()


def test_hostile_names_run_nothing_and_request_nothing(chromium: Any, hostile: Any, tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    rows = [row for row in hostile.rows if row["role"] == "ladder"][:60]
    curves = {}
    for i, row in enumerate(rows):
        plain = f"{i}<script>alert({i})<" + "\u2028&'\""
        curves[plain] = hostile.curves[row["run_id"]]
        row.update(run_id=plain, status="failed" if i % 3 == 0 else "done")
        row["error"] = row["error"].replace("\x00", "")
        row["model"] = row["model"].replace("\x00", "")
    write_study(folder, rows, curves, 50, name="</script><script>alert(1)</script>")
    with Watch(folder, every=0.2) as server:
        visit = Visit(chromium, server)
        visit.until("finished runs ·", "#answer")
        visit.page.eval_on_selector_all("details", "all => all.forEach((d) => { d.open = true; })")
        visit.page.wait_for_timeout(500)
        assert visit.page.locator("img, iframe, base, [onerror], [onload]").count() == 0
        assert visit.page.locator("script").count() == 4
        assert visit.noise == []
        visit.page.close()


def test_the_end_of_the_watch_is_said(chromium: Any, planted: Any, tmp_path: Path) -> None:
    write_study(tmp_path, planted.rows[:5], planted.curves, 2)
    with Watch(tmp_path) as server:
        visit = Visit(chromium, server)
        visit.until("live · last change")
    visit.until("The watch has ended or cannot be reached")
    visit.page.close()
