"""Every printed number about a preset is reproduced to the digits that the paper gives."""

from decimal import Decimal

import pytest

from isoflop.models import cost
from isoflop.models.presets import VIT
from isoflop.models.published import DISPUTED, PUBLISHED, VIT_GFLOPS, Published, elementwise_flops


def agrees(value: float, printed: str) -> bool:
    half_a_digit = float(Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)) / 2  # type: ignore[arg-type]
    return abs(value - float(printed)) <= half_a_digit * (1 + 1e-9)


def row_id(row: Published) -> str:
    return f"{row.preset}-{row.image_size}"


GIANTS = ("nfnet_f4", "nfnet_f4+", "nfnet_f5", "nfnet_f5+", "nfnet_f6", "nfnet_f6+", "nfnet_f7+")  # slow to build


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row_id(row), marks=[pytest.mark.long] * (row.preset in GIANTS)) for row in PUBLISHED],
)
def test_a_preset_has_the_size_and_the_cost_that_its_paper_prints(row: Published) -> None:
    ours = cost(row.preset, image_size=row.image_size, **row.options)
    parameters = ours.parameters
    if not row.classifier:
        # One class has D + 1 parameters, so two counts tell what the classifier of a thousand is.
        one = cost(row.preset, image_size=row.image_size, num_classes=1, **row.options).parameters
        parameters = one - (ours.parameters - one) // 999
    for name, value, printed in (
        ("parameters", parameters / 1e6, row.parameters),
        ("gmacs", ours.macs / 1e9, row.gmacs),
    ):
        if printed:
            assert agrees(value, printed) != ((row.preset, name) in DISPUTED), f"{name}: {value} against {printed}"


@pytest.mark.parametrize("preset", VIT_GFLOPS)
@pytest.mark.parametrize("column", [0, 1])
def test_vit_flops_and_elementwise_operations_make_the_printed_column(preset: str, column: int) -> None:
    image_size, printed = (224, 384)[column], VIT_GFLOPS[preset][column]
    size, patch = preset.removeprefix("vit_")[:-2], int(preset[-2:])
    width, depth, mlp_width, heads, _ = VIT[size]
    # 384 is no multiple of 28 or 14: the paper's models drop the rest, so the image is cropped to whole patches.
    side = image_size // patch * patch
    macs = cost(preset, image_size=side).macs - 1000 * width
    extra = elementwise_flops((side // patch) ** 2, width, depth, mlp_width, heads)
    assert agrees((2 * macs + extra) / 1e9, printed)
    assert extra / (2 * macs) < 0.04  # the correction stays small: the matrix products are the column
