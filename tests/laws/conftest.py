import numpy as np
import pytest

from isoflop.laws.forms import load_table


@pytest.fixture(scope="session")
def fractal_tables() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """family → (n, d, loss) of the measured fractal grid."""
    table = load_table("fractal_grid")
    family = np.array(table["family"])
    columns = [np.array(table[k], float) for k in ("flops_per_image", "images", "heldout_loss")]
    return {str(f): tuple(c[family == f] for c in columns) for f in np.unique(family)}
