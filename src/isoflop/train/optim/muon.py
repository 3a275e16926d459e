"""Muon for the hidden matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for groups with `is_hidden_matrix`, `torch.optim.AdamW` (fused) for the others.

    Muon's updates get the root mean square of AdamW's (times 0.2·√max(rows, columns), arXiv 2502.16982, eq. 4), so that
    one learning rate and one weight decay serve both. Convolutions are left to AdamW.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        matrices = [group for group in params if group["is_hidden_matrix"]]
        rest = [group for group in params if not group["is_hidden_matrix"]]
        muon = {"momentum": momentum, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, lr=lr, **muon))  # type: ignore[arg-type]
        if rest:
            self._parts.append(torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay, fused=True))
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Gives the two parts the groups and the state of the whole."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for part in self._parts:
            part.step()
