"""A fitted table as Markdown and as a picture (data for any plotter, and a plain SVG)."""

from html import escape
from typing import Any

import numpy as np

from isoflop.laws.compare import Crossover
from isoflop.laws.fit_table import GroupFit, TableFit
from isoflop.laws.forms import FORMS

COLOURS = ("#3366cc", "#dc6b19", "#2a9d5c", "#a23bb4", "#c22f3d", "#7a6a2f", "#2b8ca3", "#666666")


def markdown(fit: TableFit) -> str:
    """The laws, predictions, backtests and warnings of a table, for a terminal or a page."""
    lines = [f"# Laws of {fit.source}", ""]
    lines += [f"x: {' × '.join(fit.x)} (as given) · y: {fit.unit} · interval: one more run should fall inside", ""]
    for group in fit.groups:
        lines += [f"## {group.name}: {group.rows} rows", "", _law(group), ""]
        if group.prediction:
            p = group.prediction
            where = f" with n = {p.n:.3g}, d = {p.d:.3g}" if p.n is not None and p.d is not None else ""
            if p.n_interval:
                lo, hi = p.n_interval
                where += f" (n {lo:.3g} to {hi:.3g})" if hi > lo else " (n held near the sizes that were tried)"
            lines += [
                f"At {p.budget:.3g}: **{p.value:.4g}** ({p.level:.0%} interval {p.interval[0]:.4g} to "
                f"{p.interval[1]:.4g}){where}",
                "",
            ]
        if group.refusal:
            lines += [f"**{group.refusal}**", ""]
        if group.curve or group.size_data:
            lines += [_coverage(group), ""]
        lines += [f"- warning: {warning}" for warning in group.warnings] + ([""] if group.warnings else [])
    if fit.comparison:
        c = fit.comparison
        lines += [
            f"## Which is best at {c.compute:.3g}",
            "",
            f"| | predicted | {c.level:.0%} interval | P(best) | regret |",
        ]
        lines += ["|---|---|---|---|---|"]
        for s in c.standings:
            interval = f"{s.interval[0]:.4g} to {s.interval[1]:.4g}"
            lines += [f"| {s.family} | {s.loss:.4g} | {interval} | {s.p_best:.0%} | {s.regret:.3g} |"]
        ranking = ", ".join(f"{f} {v:.4g}" for f, v in sorted(c.naive.items(), key=lambda item: item[1]))
        lines += ["", f"Naive ranking at the largest shared budget ({c.naive_compute:.3g}): {ranking}", ""]
        for x in c.crossovers:
            lines += [
                f"{x.later} overtakes {x.earlier} at {x.compute:.2g} ({c.level:.0%} interval {_crossing(x)}; "
                f"{x.probability:.0%} of the bootstrap pairs cross so)",
                "",
            ]
        lines += [f"- warning: {warning}" for warning in c.warnings]
    return "\n".join(lines).rstrip() + "\n"


def _law(group: GroupFit) -> str:
    if group.size_data:
        law = group.size_data
        (a_lo, a_hi), (b_lo, b_hi) = law.exponent_intervals["alpha"], law.exponent_intervals["beta"]
        return (
            f"L = {law.irreducible:.4g} + {law.a:.4g}·n^-{law.alpha:.3f} + {law.b:.4g}·d^-{law.beta:.3f} "
            f"(α {a_lo:.2f} to {a_hi:.2f}, β {b_lo:.2f} to {b_hi:.2f} at {law.level:.0%}); best size ∝ C^"
            f"{law.exponents()['size']:.2f}; fitted to {law.window}, noise {law.noise:.1%}"
        )
    if group.curve is None:
        return "No law."
    votes: dict[str, float] = {}
    for member in group.curve.members:
        votes[member.form] = votes.get(member.form, 0.0) + member.weight
    said = ", ".join(f"{FORMS[f].formula} {w:.0%}" for f, w in sorted(votes.items(), key=lambda v: -v[1]) if w >= 0.01)
    return f"A mixture, by backtest: {said}; noise {group.curve.noise:.1%}"


def _crossing(x: Crossover) -> str:
    (lo, hi), (first, last) = x.interval, x.searched or (0.0, np.inf)
    return f"{'before ' if lo <= first else ''}{lo:.2g} to {'beyond ' if hi >= last else ''}{hi:.2g}"


def _coverage(group: GroupFit) -> str:
    if group.size_data:
        tests = group.size_data.backtests
        share, count, level = tests.coverage, f"{len(tests.errors)} predictions", tests.level
    else:
        assert group.curve is not None
        share, count, level = group.curve.backtest_coverage, "the points held back", 0.9
    if share is None:
        return "Backtest: none possible; the interval beyond the data is a guess."
    return f"Backtest: {share:.0%} of {count} fell inside the {level:.0%} interval given at the time."


def picture(fit: TableFit, points: int = 80) -> dict[str, Any]:
    """Points, laws and bands of a table as plain data: {title, x, y, series: [{name, kind, colour, x, y}]}.

    Both axes are logarithmic; x is the column, or compute n·d. `kind` is "points" (with a `radius` if not 3), "line" or
    "band" (y to `y2`).
    """
    series: list[dict[str, Any]] = []
    for k, group in enumerate(fit.groups):
        colour = COLOURS[k % len(COLOURS)]
        x = np.array([p[0] for p in group.points])
        end = max(x.max() * 2, group.prediction.budget if group.prediction else 0.0)
        grid = np.geomspace(x.min(), end, points)
        if group.curve:
            middle, (lo, hi) = group.curve.predict(grid), group.curve.interval(grid)
        else:
            assert group.size_data is not None
            best = [group.size_data.optimal(float(c)) for c in grid]
            middle = np.array([b[2] for b in best])
            lo, hi = group.size_data.interval([b[0] for b in best], [b[1] for b in best])
        base = {"name": group.name, "colour": colour}
        series.append({**base, "kind": "band", "x": grid.tolist(), "y": lo.tolist(), "y2": hi.tolist()})
        series.append({**base, "kind": "line", "x": grid.tolist(), "y": middle.tolist()})
        series.append({**base, "kind": "points", "x": x.tolist(), "y": [p[1] for p in group.points]})
    return {"title": fit.source, "x": " × ".join(fit.x), "y": fit.unit, "series": series}


def svg(data: dict[str, Any], width: int = 760, height: int = 480) -> str:
    """The picture as one SVG document: logarithmic axes, bands behind lines behind points; text is escaped."""
    left, right, top, bottom = 78, 18, 40, 56
    values = [np.log10(np.array(s[axis])) for s in data["series"] for axis in ("x",)]
    heights = [np.log10(np.array(s[axis])) for s in data["series"] for axis in ("y", "y2") if axis in s]
    x0, x1 = min(v.min() for v in values), max(v.max() for v in values)
    y0, y1 = min(v.min() for v in heights), max(v.max() for v in heights)
    pad = 0.04 * max(y1 - y0, 1e-6)
    y0, y1 = y0 - pad, y1 + pad
    margin = 0.015 * max(x1 - x0, 1e-6)  # no dot is cut by the edge
    x0, x1 = x0 - margin, x1 + margin

    def px(x: Any) -> Any:
        return left + (np.log10(x) - x0) / max(x1 - x0, 1e-9) * (width - left - right)

    def py(y: Any) -> Any:
        return height - bottom - (np.log10(y) - y0) / (y1 - y0) * (height - top - bottom)

    def path(x: list[float], y: list[float]) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px(np.array(x)), py(np.array(y)), strict=True))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="22" font-size="14" font-weight="600">{escape(str(data["title"]))}</text>',
    ]
    for tick in _ticks(x0, x1):
        x = float(px(tick))
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}" stroke="#e6e6e6"/>')
        out.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle" fill="#444">{tick:g}</text>')
    for tick in _ticks(y0, y1):
        y = float(py(tick))
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6e6e6"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{tick:g}</text>')
    for kind in ("band", "line", "points"):
        for s in (s for s in data["series"] if s["kind"] == kind):
            if kind == "band":
                outline = path(s["x"], s["y"]) + " " + path(s["x"][::-1], s["y2"][::-1])
                out.append(f'<polygon points="{outline}" fill="{s["colour"]}" fill-opacity="0.14"/>')
            elif kind == "line":
                line = path(s["x"], s["y"])
                out.append(f'<polyline points="{line}" fill="none" stroke="{s["colour"]}" stroke-width="1.8"/>')
            else:
                dots = zip(px(np.array(s["x"])), py(np.array(s["y"])), strict=True)
                dot = f'r="{s.get("radius", 3):g}" fill="{s["colour"]}"/>'
                out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" {dot}' for a, b in dots]
    names = dict.fromkeys((s["name"], s["colour"]) for s in data["series"])
    for k, (name, colour) in enumerate(names):
        y = top + 14 + 17 * k
        out.append(f'<circle cx="{width - right - 150}" cy="{y - 4}" r="4" fill="{colour}"/>')
        out.append(f'<text x="{width - right - 140}" y="{y}">{escape(str(name))}</text>')
    across, up = (left + width - right) / 2, (top + height - bottom) / 2
    for label, where in (
        ("x", f'x="{across}" y="{height - 14}"'),
        ("y", f'transform="translate(18 {up}) rotate(-90)"'),
    ):
        out.append(f'<text {where} text-anchor="middle">{escape(str(data[label]))}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10^low and 10^high: decades if there are three, else 1-2-5, else equal steps."""
    first, last = int(np.floor(low)), int(np.ceil(high))
    for digits in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        ticks = [m * 10.0**e for e in range(first, last + 1) for m in digits if low <= np.log10(m * 10.0**e) <= high]
        if len(ticks) >= 4 or (len(ticks) == 3 and digits == (1.0,)):
            return [float(f"{t:.3g}") for t in ticks[:: max(len(ticks) // 8, 1)]]
    start, end = 10.0**low, 10.0**high
    unit = 10.0 ** np.floor(np.log10((end - start) / 3))
    step = unit * max(m for m in (1, 2, 2.5, 5) if m * unit <= (end - start) / 3)
    return [float(f"{k * step:.6g}") for k in range(int(np.ceil(start / step)), int(end / step) + 1)]
