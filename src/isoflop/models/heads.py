"""From tokens to one vector per image: the class token, the mean, or attention pooling (MAP)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models.drop import Dropout
from isoflop.models.layers import ChannelMLP, LayerNorm, SquaredReLU
from isoflop.models.parameters import Kinds


class MapPool(nn.Module):
    """Multi-head attention pooling: a learned probe attends over the tokens, then x + MLP(LN(x)) (arXiv 2106.04560).

    (batch, tokens, width) -> (batch, width). There is no residual around the attention: the probe carries no content.
    """

    parameter_kinds: ClassVar[Kinds] = {"probe": "token"}
    split_by_head: ClassVar[dict[str, int]] = {"q": 1, "kv": 2, "proj": 0}

    def __init__(self, width: int, heads: int, mlp_width: int, activation: str = "gelu") -> None:
        super().__init__()
        if width % heads:
            raise ModelError(f"attention pooling of width {width} cannot be split into {heads} heads")
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = LayerNorm(width)
        self.mlp = ChannelMLP(width, mlp_width, activation)
        bound = math.sqrt(6 / (1 + width))  # xavier over the (1, width) probe
        nn.init.uniform_(self.probe, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, width = x.shape
        q = self.q(self.probe).view(1, 1, self.heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        k, v = self.kv(x).view(batch, -1, 2, self.heads, width // self.heads).transpose(1, 3).unbind(2)
        pooled: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, width))
        out: Tensor = pooled + self.mlp(self.norm(pooled))
        return out


class MLPHead(nn.Module):
    """Logits through a hidden layer of four widths, squared ReLU, LayerNorm and dropout (arXiv 2210.13452, appendix).

    The eps of its norm is 1e-5 in the authors' code, 1e-6 in timm.
    """

    def __init__(self, width: int, num_classes: int, eps: float = 1e-5, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = SquaredReLU()
        self.norm = LayerNorm(4 * width, eps)
        self.dropout = Dropout(dropout)
        self.fc2 = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.dropout(self.norm(self.act(self.fc1(x)))))
        return logits


class TanhHead(nn.Module):
    """Logits through a hidden layer with tanh: the head of the first ViTs in pretraining (arXiv 2010.11929).

    Their code calls the hidden layer `pre_logits`, and leaves it out in fine-tuning.
    """

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.fc1(x).tanh())
        return logits
