"""Laws of one variable: loss or error as a function of compute, images or size.

Each form is a row of a table: its formula, its derivatives, its bounds and its starts. All use t = log(x / scale) and
predict z = log y, so the result does not depend on units. Parameters are in these scaled units.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.columns import JsonRecord, positive_columns
from isoflop.laws.profile import profile_interval
from isoflop.laws.solve import Array, Model, minimise, project, robust_scale

Evaluate = Callable[[Array, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Form:
    """One law y = f(x).

    Attributes:
        name: short name, as on the command line. formula: how to print it. source: where it is from.
        parameters: names of the parameters, in the order of theta.
        evaluate: (theta (R, P), t (m,)) → log y (R, m) and d log y / d theta (R, m, P).
        box: (t, z) → lower, upper bounds of theta, each (P,).
        starts: (t, z) → starting points (S, P), what is linear projected out.
        minimum: the fewest points that it may be fitted to.
    """

    name: str
    formula: str
    source: str
    parameters: tuple[str, ...]
    evaluate: Evaluate
    box: Callable[[Array, Array], tuple[Array, Array]]
    starts: Callable[[Array, Array], Array]
    minimum: int

    def model(self, t: Array) -> Model:
        """The form at fixed points, as `solve.minimise` wants it."""
        return lambda theta: self.evaluate(theta, t)


def _columns(theta: Array) -> list[Array]:
    return [theta[:, k, None] for k in range(theta.shape[1])]


# --- power law: a·x^-b --------------------------------------------------------------------------------------------


def _power(theta: Array, t: Array) -> tuple[Array, Array]:
    log_a, b = _columns(theta)
    return log_a - b * t, np.stack(np.broadcast_arrays(np.ones_like(b), -t), axis=2)


def _power_box(t: Array, z: Array) -> tuple[Array, Array]:
    return np.array([z.min() - 9.0, 0.0]), np.array([z.max() + 9.0, 5.0])


def _power_starts(t: Array, z: Array) -> Array:
    slope, level = np.polyfit(t, z, 1)
    return np.array([[level, max(-slope, 0.0)]])


# --- damped: the slope of log y falls as x^-DAMPING ----------------------------------------------------------------

DAMPING = 0.35
"""How fast the slope of a log-log learning curve decays: by x^-0.35, so that log y is itself a power law with offset.

Few-shot error curves of ViTs, Mixers and ResNets share this rate within 0.3-0.45, whatever their slope; left free, it
is fitted to noise. It is only one member of a mixture: a table that contradicts it in backtests outvotes it.
"""


def _damped(theta: Array, t: Array) -> tuple[Array, Array]:
    level, slope = _columns(theta)
    bend = -np.expm1(-DAMPING * t) / DAMPING
    return level - slope * bend, np.stack(np.broadcast_arrays(np.ones_like(slope), -bend), axis=2)


def _damped_box(t: Array, z: Array) -> tuple[Array, Array]:
    return np.array([z.min() - 9.0, 0.0]), np.array([z.max() + 9.0, 5.0])


def _damped_starts(t: Array, z: Array) -> Array:
    slope, level = np.polyfit(-np.expm1(-DAMPING * t) / DAMPING, z, 1)
    return np.array([[level, max(-slope, 0.0)]])


# --- power law with offset: a·x^-b + c ----------------------------------------------------------------------------


def _offset(theta: Array, t: Array) -> tuple[Array, Array]:
    log_a, b, c = _columns(theta)
    power = np.exp(log_a - b * t)
    y = power + c
    return np.log(y), np.stack([power, -t * power, np.ones_like(y)], axis=2) / y[:, :, None]


def _offset_box(t: Array, z: Array) -> tuple[Array, Array]:
    return np.array([z.min() - 12.0, 0.005, 0.0]), np.array([z.max() + 9.0, 5.0, np.exp(z.min())])


def _offset_starts(t: Array, z: Array) -> Array:
    b = np.geomspace(0.02, 3.0, 24)
    columns = np.stack([np.exp(-b[:, None] * t), np.ones((b.size, t.size))], axis=2)
    coefficients, objective = project(columns, z, 0.03)
    best = np.argsort(objective, kind="stable")[:4]
    a = np.maximum(coefficients[best, 0], 1e-5 * np.exp(z.min()))
    return np.stack([np.log(a), b[best], np.minimum(coefficients[best, 1], 0.98 * np.exp(z.min()))], axis=1)


# --- M3: a·(1/x + g)^b, a floor that is reached as a power --------------------------------------------------------


def _m3(theta: Array, t: Array) -> tuple[Array, Array]:
    log_a, b, log_g = _columns(theta)
    inverse, g = np.exp(-t), np.exp(log_g)
    log_sum = np.log(inverse + g)
    parts = np.broadcast_arrays(np.ones_like(log_sum), log_sum, b * g / (inverse + g))
    return log_a + b * log_sum, np.stack(parts, axis=2)


def _m3_box(t: Array, z: Array) -> tuple[Array, Array]:
    return np.array([z.min() - 9.0, 0.0, -t.max() - 12.0]), np.array([z.max() + 12.0, 8.0, -t.min() + 2.0])


def _m3_starts(t: Array, z: Array) -> Array:
    rows = []
    for log_g in np.linspace(-t.max() - 6.0, -t.min(), 8):
        slope, level = np.polyfit(np.log(np.exp(-t) + np.exp(log_g)), z, 1)
        rows.append([level, max(slope, 0.01), log_g])
    return np.array(rows)


# --- M4: (y - c) / (top - y)^alpha = a·x^-b ------------------------------------------------------------------------


def _m4(theta: Array, t: Array) -> tuple[Array, Array]:
    """Solved for y by Newton; derivatives are implicit.

    With y = c + span·sigmoid(v) the equation is F(v) = target, where F'' has one sign: Newton cannot overshoot twice.
    """
    log_a, b, c, alpha, top = _columns(theta)
    span = top - c
    target = log_a - b * t - (1.0 - alpha) * np.log(span)
    v = np.where(target < 0, target, target / np.maximum(alpha, 0.05))
    for _ in range(8):
        s = 1.0 / (1.0 + np.exp(-v))
        value = alpha * np.logaddexp(0.0, v) - np.logaddexp(0.0, -v) - target
        v = np.clip(v - value / np.maximum(1.0 - s + alpha * s, 1e-3), -40.0, 40.0)
    s = 1.0 / (1.0 + np.exp(-v))
    y, rest = c + span * s, span / (1.0 + np.exp(v))
    above = np.maximum(span * s, 1e-300)
    slope = 1.0 / above + alpha / rest  # d/dy of log(y - c) - alpha·log(top - y)
    dy = [
        1.0 / slope,
        -t / slope,
        1.0 / above / slope,
        np.log(rest) / slope,
        alpha / rest / slope,
    ]
    return np.log(y), np.stack([np.broadcast_to(d, y.shape) for d in dy], axis=2) / y[:, :, None]


def _m4_box(t: Array, z: Array) -> tuple[Array, Array]:
    bottom, top = np.exp(z.min()), np.exp(z.max())
    return (
        np.array([-40.0, 0.005, 0.0, 0.0, top * (1 + 1e-6)]),
        np.array([40.0, 4.0, bottom * (1 - 1e-6), 8.0, top * 4.0]),
    )


def _m4_starts(t: Array, z: Array) -> Array:
    y = np.exp(z)
    rows, errors = [], []
    for top in (1.005 * y.max(), 1.1 * y.max(), 1.5 * y.max()):
        for c in y.min() * np.array([0.0, 0.3, 0.6, 0.8, 0.9, 0.97]):
            for alpha in (0.0, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0):
                left = np.log(y - c) - alpha * np.log(top - y)
                slope, level = np.polyfit(t, left, 1)
                rows.append([level, max(-slope, 0.01), c, alpha, top])
    theta = np.array(rows)
    errors = np.abs(_m4(theta, t)[0] - z).sum(1)
    return theta[np.argsort(errors, kind="stable")[:16]]


# --- broken law, one break: c + a·x^-b·(1 + (x/x1)^(1/f))^(-b1·f) --------------------------------------------------


def _broken(theta: Array, t: Array) -> tuple[Array, Array]:
    log_a, b, c, b1, t1, log_f = _columns(theta)
    f = np.exp(log_f)
    u = (t - t1) / f
    soft = np.logaddexp(0.0, u)
    s = 1.0 / (1.0 + np.exp(-u))
    power = np.exp(log_a - b * t - b1 * f * soft)
    y = power + c
    parts = [power, -t * power, np.ones_like(y), -f * soft * power, b1 * s * power, -b1 * f * (soft - u * s) * power]
    return np.log(y), np.stack(parts, axis=2) / y[:, :, None]


def _broken_box(t: Array, z: Array) -> tuple[Array, Array]:
    span = t.max() - t.min()
    return (
        np.array([z.min() - 12.0, -0.5, 0.0, -2.0, t.min() - 0.2 * span, np.log(0.1)]),
        np.array([z.max() + 9.0, 4.0, np.exp(z.min()) * (1 - 1e-6), 3.0, t.max() + 0.1 * span, np.log(3.0)]),
    )


def _broken_starts(t: Array, z: Array) -> Array:
    b, b1, where, f = (
        g.ravel()
        for g in np.meshgrid(
            [0.0, 0.1, 0.3, 0.6, 1.2], [-0.3, -0.1, 0.1, 0.3], np.quantile(t, [0.1, 0.3, 0.5, 0.7, 0.9]), [0.3, 1.0]
        )
    )
    curve = np.exp(-b[:, None] * t - (b1 * f)[:, None] * np.logaddexp(0.0, (t - where[:, None]) / f[:, None]))
    coefficients, objective = project(np.stack([curve, np.ones_like(curve)], axis=2), z, 0.03)
    best = np.argsort(objective, kind="stable")[:16]
    a = np.log(np.maximum(coefficients[best, 0], 1e-5 * np.exp(z.min())))
    c = np.minimum(coefficients[best, 1], 0.98 * np.exp(z.min()))
    return np.stack([a, b[best], c, b1[best], where[best], np.log(f[best])], axis=1)


# --- double saturation: a·(x + d)^-b + c ---------------------------------------------------------------------------


def _double(theta: Array, t: Array) -> tuple[Array, Array]:
    log_a, b, c, log_d = _columns(theta)
    x, d = np.exp(t), np.exp(log_d)
    log_base = np.log(x + d)
    power = np.exp(log_a - b * log_base)
    y = power + c
    parts = [power, -log_base * power, np.ones_like(y), -b * d / (x + d) * power]
    return np.log(y), np.stack(parts, axis=2) / y[:, :, None]


def _double_box(t: Array, z: Array) -> tuple[Array, Array]:
    span = t.max() - t.min()
    lower = np.array([z.min() - 12.0, 0.005, 0.0, t.min() - 7.0])
    return lower, np.array([z.max() + 30.0, 5.0, np.exp(z.min()) * (1 - 1e-6), t.min() + max(span, 1.0)])


def _double_starts(t: Array, z: Array) -> Array:
    b, log_d = (g.ravel() for g in np.meshgrid(np.geomspace(0.02, 2.5, 20), t.min() + np.array([-6, -2, -1, 0, 1, 2])))
    base = (np.exp(t) + np.exp(log_d)[:, None]) ** -b[:, None]
    coefficients, objective = project(np.stack([base, np.ones_like(base)], axis=2), z, 0.03)
    best = np.argsort(objective, kind="stable")[:8]
    a = np.log(np.maximum(coefficients[best, 0], 1e-5 * np.exp(z.min())))
    return np.stack([a, b[best], np.minimum(coefficients[best, 1], 0.98 * np.exp(z.min())), log_d[best]], axis=1)


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form("power", "a·x^-b", "arXiv 1712.00409 (M1 of 2209.06640)", ("log_a", "b"),
             _power, _power_box, _power_starts, 3),
        Form("damped", "a·exp(b·(x^-0.35 - 1)/0.35)", "isoflop; see DAMPING", ("log_a", "b"),
             _damped, _damped_box, _damped_starts, 3),
        Form("offset", "a·x^-b + c", "arXiv 2203.15556 (M2 of 2209.06640)", ("log_a", "b", "c"),
             _offset, _offset_box, _offset_starts, 4),
        Form("m3", "a·(1/x + g)^b", "arXiv 2209.06640, M3", ("log_a", "b", "log_g"),
             _m3, _m3_box, _m3_starts, 4),
        Form("double", "a·(x + d)^-b + c", "arXiv 2106.04560, section 2", ("log_a", "b", "c", "log_d"),
             _double, _double_box, _double_starts, 5),
        Form("m4", "(y - c)/(top - y)^α = a·x^-b", "arXiv 2209.06640, M4", ("log_a", "b", "c", "alpha", "top"),
             _m4, _m4_box, _m4_starts, 6),
        Form("broken", "c + a·x^-b·(1 + (x/x1)^(1/f))^(-b1·f)", "arXiv 2210.14891, one break",
             ("log_a", "b", "c", "b1", "t1", "log_f"), _broken, _broken_box, _broken_starts, 8),
    )
}  # fmt: skip
"""Name → form, from the fewest parameters to the most."""


# One form of `forms.FORMS` fitted to one curve: its parameters in the units of the table, with intervals.


@dataclass(frozen=True)
class FormLaw(JsonRecord):
    """A fitted form.

    Attributes:
        form: its name in `FORMS`. scale: x of the last point; `theta` is for t = log(x / scale).
        exponent, exponent_interval: b with its profile interval at `level`.
        offset: c where the form has one, else 0. noise, freedom: of log y. agreement, converged: of the starts.
    """

    form: str
    scale: float
    theta: tuple[float, ...]
    exponent: float
    exponent_interval: tuple[float, float]
    level: float
    offset: float
    noise: float
    freedom: float
    agreement: float
    converged: bool

    def predict(self, x: ArrayLike) -> Array:
        """y at x."""
        t = np.log(np.asarray(x, dtype=np.float64) / self.scale)
        value = FORMS[self.form].evaluate(np.array([self.theta]), t.reshape(-1))[0][0]
        return np.asarray(np.exp(value).reshape(t.shape))


def fit_form(form: str, x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> FormLaw:
    """One named form fitted to positive x and y, (m,), by the summed Huber loss of log y.

    Raises:
        LawError: no such form, too few points for it, values not positive and finite.
    """
    if form not in FORMS:
        raise LawError(f"there is no form `{form}`; there are {', '.join(FORMS)}")
    law = FORMS[form]
    a, z = positive_columns(x=x, y=y)
    if np.unique(a).size < law.minimum:
        raise LawError(f"the form `{form}` needs at least {law.minimum} different x, not {np.unique(a).size}")
    order = np.lexsort((z, a))
    t, z = np.log(a[order] / a.max()), np.log(z[order])
    (lower, upper), theta = law.box(t, z), law.starts(t, z)
    delta, noise = 0.05, 0.0
    for _ in range(8):
        solution = minimise(law.model(t), theta, z, delta=delta, lower=lower, upper=upper)
        theta = solution.theta[np.argsort(solution.objective, kind="stable")]
        before, noise = noise, max(robust_scale(z - law.evaluate(theta[:1], t)[0][0], len(law.parameters)), 1e-7)
        delta = 1.345 * noise
        if abs(noise - before) <= 0.02 * noise:
            break
    solution = minimise(law.model(t), theta, z, delta=delta, lower=lower, upper=upper, iterations=1000)
    best = int(np.argmin(solution.objective))
    point = solution.theta[best]
    b = law.parameters.index("b")
    interval = profile_interval(law.model(t), point, z, b, delta=delta, lower=lower, upper=upper, level=level)
    close = solution.objective - solution.objective[best] <= 1e-3 * noise**2
    offset = float(point[law.parameters.index("c")]) if "c" in law.parameters else 0.0
    return FormLaw(
        form, float(a.max()), tuple(point.tolist()), float(point[b]), interval, level, offset, noise,
        float(max(z.size - len(law.parameters), 1)), float(close.mean()), bool(solution.converged[best]),
    )  # fmt: skip


# Tables of results that ship with isoflop, each with its source: for tests, benchmarks and examples.


SOURCES: dict[str, str] = {
    "learning_curves_vision": "36 few-shot learning curves of 6 models, arXiv 2209.06640, CC BY 4.0; error against "
    "examples seen, `training` = 1 marks the part that is fitted",
    "scaling_vit_fewshot": "arXiv 2106.04560, appendix G: 5- and 10-shot ImageNet accuracy in %, steps at batch 4096",
    "scaling_vit_finetune": "arXiv 2106.04560, appendix F: ImageNet accuracy in % after fine-tuning, "
    "steps at batch 4096",
    "nfnet_jft4b_digitised": "arXiv 2310.16764, figure 1, digitised: ImageNet top-1 error in % after fine-tuning "
    "against TPU-v4 core-hours; as digitised, the four points called F7+ repeat four of F7, and the run of 110,000 "
    "core-hours is missing",
    "fractal_grid": "isoflop's own: ViT and pooling models on generated fractals, one CPU core, AdamW",
}
"""Name → where the numbers come from and what their columns mean."""

VIT_GFLOPS: dict[str, float] = {
    "s/28": 0.7, "s/16": 2.2, "S/32": 2.3, "Ti/16": 2.5, "B/32": 8.7, "S/16": 9.2, "B/28": 11.3, "B/16": 35.1,
    "L/16": 122.9, "g/14": 533.1, "G/14": 965.3,
}  # fmt: skip
"""GFLOPs (2 × MACs) of a forward pass at 224 px, arXiv 2106.04560, table 2; training an image costs three of them."""


def load_table(name: str) -> dict[str, list[str]]:
    """The columns of a bundled table as text, in file order.

    Raises:
        LawError: no such table.
    """
    if name not in SOURCES:
        raise LawError(f"there is no bundled table `{name}`; there are {', '.join(sorted(SOURCES))}")
    rows = list(csv.DictReader((files("isoflop.laws") / "tables" / f"{name}.csv").read_text("utf-8").splitlines()))
    return {column: [row[column] for row in rows] for column in rows[0]}
