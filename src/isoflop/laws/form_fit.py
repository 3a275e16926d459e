"""One form of `forms.FORMS` fitted to one curve: its parameters in the units of the table, with intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.checks import positive_columns
from isoflop.laws.forms import FORMS
from isoflop.laws.profile import profile_interval
from isoflop.laws.records import Record
from isoflop.laws.solve import Array, minimise, robust_scale


@dataclass(frozen=True)
class FormLaw(Record):
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
    interval = profile_interval(law.model(t), point, z, b, noise=noise, lower=lower, upper=upper, level=level)
    close = solution.objective - solution.objective[best] <= 1e-3 * noise**2
    offset = float(point[law.parameters.index("c")]) if "c" in law.parameters else 0.0
    return FormLaw(
        form, float(a.max()), tuple(point.tolist()), float(point[b]), interval, level, offset, noise,
        float(max(z.size - len(law.parameters), 1)), float(close.mean()), bool(solution.converged[best]),
    )  # fmt: skip
