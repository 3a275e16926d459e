"""Which form of an operator is the faster one: each form at the sizes that models have, forward and backward.

    python benchmarks/operators.py                      # attention in float32 and bfloat16, one thread
    python benchmarks/operators.py --precision float32 --rounds 9

Prints CPU seconds of one call (the median of the rounds, which take turns) and the ratio to PyTorch's own kernel;
`chosen` is what `isoflop.models.operators.attention` takes on this machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models.operators import attention, writes_attention_out, written_out_attention

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
SIZES = {  # batch, heads, tokens, channels of a head
    "(128, 6, 64, 32)": (128, 6, 64, 32),
    "ViT-S/16, 224 px": (8, 6, 197, 64),
    "ViT-S/16, 384 px": (4, 6, 577, 64),
}
FORMS: dict[str, Form] = {"SDPA": F.scaled_dot_product_attention, "written out": written_out_attention}


def cpu_seconds(form: Form, inputs: tuple[Tensor, Tensor, Tensor], gradient: Tensor) -> float:
    began = time.process_time()
    torch.autograd.grad(form(*inputs), inputs, gradient)
    return time.process_time() - began


def measure(size: tuple[int, ...], kind: torch.dtype, rounds: int) -> dict[str, float]:
    """CPU seconds of each form on tensors laid out as a model's: one product makes query, key and value."""
    batch, heads, tokens, width = size
    made = torch.randn(batch, tokens, 3, heads, width, dtype=kind).transpose(1, 3).unbind(2)
    q, k, v = (part.detach().requires_grad_() for part in made)
    gradient = torch.randn(batch, tokens, heads, width, dtype=kind).transpose(1, 2)
    found: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(rounds + 1):
        for name, form in FORMS.items():
            found[name].append(cpu_seconds(form, (q, k, v), gradient))
    assert attention(q, k, v).shape == q.shape
    return {name: median(times[1:]) for name, times in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        "| attention | precision | "
        + " | ".join(f"{name}, CPU ms" for name in FORMS)
        + " | SDPA ÷ written out | chosen |"
    )
    print("|---|---|" + "---:|" * (len(FORMS) + 1) + "---|")
    for label, size in SIZES.items():
        for precision in arguments.precision:
            kind = getattr(torch, precision)
            seconds = measure(size, kind, arguments.rounds)
            chosen = "written out" if writes_attention_out(torch.empty(0, dtype=kind)) else "SDPA"
            cells = " | ".join(f"{1e3 * value:.1f}" for value in seconds.values())
            ratio = seconds["SDPA"] / seconds["written out"]
            print(f"| {label} | {precision} | {cells} | {ratio:.2f} | {chosen} |", flush=True)
