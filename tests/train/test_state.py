"""What is packed comes back, also where memory layouts differ."""

import torch
from torch import nn

from isoflop.train.checkpoints import pack, unpack


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    model(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_restored_channels_last_network_goes_on_bit_for_bit() -> None:
    """Fused AdamW pairs weight and state by their place in memory: restored state must take the weight's layout."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    step(model, optimizer, 1)
    # A file stores tensors densely, without their strides.
    packed = {name: tensor.contiguous().clone() for name, tensor in pack(model, optimizer).items()}
    other = network()
    restored = torch.optim.AdamW(other.parameters(), lr=0.1, fused=True)
    unpack(packed, other, restored)
    for seed in (2, 3):
        step(model, optimizer, seed)
        step(other, restored, seed)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
