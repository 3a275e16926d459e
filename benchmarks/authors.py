"""Our models and losses against the authors' own code, in float64, with the same random weights in both.

    python benchmarks/authors.py FOLDER [ROW ...]

FOLDER holds clones of the authors' repositories, none of whose code is in isoflop: mae and deit (facebookresearch),
poolformer and metaformer (sail-sg), big_transfer and big_vision (google-research), deepmind-research. Beside isoflop
and timm, their code needs `pip install jax flax dm-haiku absl-py`. ROW picks rows by the beginning of their names.

Printed is a Markdown table. A difference is the largest one of a tensor, as a share of the largest value of that
tensor; of gradients and parameters, that of the worst tensor. What is above 1e-6 has its reason beside it, or is a
fault, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.config import OptimConfig
from isoflop.models import Backbone, create_model
from isoflop.models.interop import load_weights
from isoflop.models.interop.names import from_baseline, from_poolformer
from isoflop.models.layers import sincos_2d
from isoflop.objectives import Masked
from isoflop.objectives.distilled import Distilled
from isoflop.train.optim import AdaptiveGradientClipping, build_optimizer, optimizers, set_rate

LIMIT = 1e-6
STEPS = 20  # of the rows that train
Named = Mapping[str, Tensor]
# A row: what is compared, and the function that returns its differences, by what they are of.
Row = tuple[str, Callable[[Path], dict[str, float]]]
REASONS: dict[str, str] = {  # of a row whose difference is above LIMIT
    **{
        f"big_vision ViT, {kind}: 20 steps of Adafactor, momentum in bfloat16": "JAX makes a bfloat16 number of their "
        "0.9 before it multiplies: 0.8984"
        for kind in ("gap, sincos2d", "tok, learn", "map, learn")
    },
    "DeiT, distilled: soft distillation loss": "their code divides the divergence by images × classes, eq. 2 by images",
}

# --- the authors' modules --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def imported(folder: Path, *names: str, stand_ins: Mapping[str, types.ModuleType] | None = None) -> Iterator[list[Any]]:
    """Modules of a repository by name, as long as no others of its names get in the way; they are forgotten behind."""
    stand_ins = stand_ins or {}
    before = {name: sys.modules.pop(name, None) for name in {part for name in names for part in parents(name)}}
    shadowed = {name: sys.modules.get(name) for name in stand_ins}
    sys.path.insert(0, str(folder))
    for name, stand_in in stand_ins.items():
        put(name, stand_in)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            found = [importlib.import_module(name) for name in names]
        yield found
    finally:
        sys.path.remove(str(folder))
        for name in [n for n, m in sys.modules.items() if (getattr(m, "__file__", None) or "").startswith(str(folder))]:
            del sys.modules[name]
        for name, own in {**before, **shadowed}.items():
            put(name, own)


def parents(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:count]) for count in range(1, len(words) + 1)]


def put(name: str, content: types.ModuleType | None) -> None:
    """Makes `content` the module of that name, also for who has its package."""
    package, _, last = name.rpartition(".")
    if content is None:
        sys.modules.pop(name, None)
        return
    sys.modules[name] = content
    if package in sys.modules:
        setattr(sys.modules[package], last, content)


def module(name: str, **content: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(content)
    return made


class OldVisionTransformer(nn.Module):
    """The parts of timm 0.3.2's ViT that MAE and DeiT build upon."""

    def __init__(
        self, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, num_classes: int = 1000,
        embed_dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4.0, qkv_bias: bool = True,
        norm_layer: Any = nn.LayerNorm, **_: Any,
    ) -> None:  # fmt: skip
        import timm.models.vision_transformer as vit

        super().__init__()
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.patch_embed = vit.PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        self.pos_drop = nn.Identity()
        self.blocks = nn.ModuleList(
            vit.Block(embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, norm_layer=norm_layer) for _ in range(depth)
        )
        self.norm = norm_layer(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def _init_weights(self, module: nn.Module) -> None: ...

    def forward_features(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


def old_timm() -> dict[str, types.ModuleType]:
    """Stand-ins for the modules of old versions of timm that the authors import."""
    import timm
    import timm.layers
    import timm.models.vision_transformer as vit

    def block(*args: Any, qk_scale: None = None, **kwargs: Any) -> nn.Module:
        return vit.Block(*args, **kwargs)

    layers = {name: getattr(timm.layers, name) for name in ("trunc_normal_", "DropPath", "to_2tuple")}
    vits = {"PatchEmbed": vit.PatchEmbed, "Block": block, "VisionTransformer": OldVisionTransformer}
    return {
        "timm.models.layers": module("timm.models.layers", **layers),
        "timm.models.layers.helpers": module("timm.models.layers.helpers", **layers),
        "timm.models.registry": module("timm.models.registry", register_model=lambda function: function),
        "timm.models.vision_transformer": module(
            "timm.models.vision_transformer", _cfg=lambda **more: {"num_classes": 1000, **more}, **vits
        ),
    }


# --- comparing -------------------------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(model: nn.Module) -> Any:
    """`model` in float64, with every vector moved off its start, so that no parameter is without effect."""
    model = model.double()
    numbers = generator()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=numbers, dtype=torch.float64)
            if parameter.ndim <= 1 or parameter.shape[:2] == (1, 1):
                parameter.add_(0.3 * noise + 0.1)
            elif not parameter.any():
                parameter.add_(0.04 * (noise - 0.5))
    return model


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=generator(1), dtype=torch.float64)


def difference(ours: Tensor, theirs: Tensor, least: float = 0.0) -> float:
    """The largest difference as a share of the largest value, or of `least` where that is more."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).detach().abs().max()) / (max(largest(theirs), least) or 1.0)


def worst(ours: Named, theirs: Named) -> float:
    """The largest `difference` of tensors by name; all names must be there.

    Some gradients are zero but for rounding (of a bias that the pooling behind it cancels): no value counts for less
    than a billionth of the largest of all.
    """
    assert set(ours) == set(theirs), sorted(set(ours) ^ set(theirs))[:6]
    least = 1e-9 * max(map(largest, theirs.values()))
    return max(difference(tensor, theirs[name], least) for name, tensor in ours.items())


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


def in_our_names(model: Backbone, theirs: Named, layout: str = "timm", head: bool = True) -> dict[str, Tensor]:
    """Their tensors (weights, gradients, what a step makes of them) as those of our `model`."""
    filled = copy.deepcopy(model)
    load_weights(filled, theirs, layout, head=head)
    return {name: parameter.detach() for name, parameter in filled.named_parameters()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def forward_and_gradients(
    ours: Backbone, theirs: nn.Module, renamed: Callable[[Named], Named], size: int
) -> dict[str, float]:
    """Logits in evaluation, and the gradient of all parameters by a random linear function of them."""
    ours, theirs = ours.double().eval(), theirs.eval()
    load_weights(ours, renamed(theirs.state_dict()), "timm")
    x, direction = images(size), torch.randn(2, ours.num_classes, generator=generator(2), dtype=torch.float64)
    a, b = ours(x), theirs(x)
    (a * direction).sum().backward()
    (b * direction).sum().backward()
    learned = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    wanted = in_our_names(ours, renamed({**theirs.state_dict(), **gradients(theirs)}))
    return {
        "logits": difference(a, b),
        "gradients": worst({n: g for n, g in gradients(ours).items() if n in learned},
                           {n: g for n, g in wanted.items() if n in learned}),
    }  # fmt: skip


# --- rows ------------------------------------------------------------------------------------------------------------

MAE_SIZE = {"img_size": 64, "patch_size": 16, "embed_dim": 192, "depth": 3, "num_heads": 3}


def mae(folder: Path) -> dict[str, float]:
    setattr(np, "float", float)  # noqa: B010 - as in NumPy before 1.24, for MAE's positions
    with imported(folder / "mae", "util.pos_embed", "models_mae", stand_ins=old_timm()) as (tables, code):
        positions = torch.from_numpy(tables.get_2d_sincos_pos_embed(192, 4))
        theirs = shaken(
            code.MaskedAutoencoderViT(
                **MAE_SIZE, decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4, norm_pix_loss=True,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
        )  # fmt: skip
    backbone = create_model("mae_b16", image_size=64, depths=(3,), widths=(192,), heads=(3,), mlp_widths=(768,))
    ours = Masked(backbone, decoder_depth=2, decoder_width=64, decoder_heads=4).double()
    encoder, decoder = split_mae(theirs.state_dict())
    load_weights(backbone, encoder, "timm", head=False)
    ours.decoder.load_state_dict(decoder)
    x, noise = images(64), torch.rand(2, 16, generator=generator(3), dtype=torch.float64)
    original, torch.rand = torch.rand, lambda *shape, **_: noise
    try:
        loss, _, mask = theirs(x, 0.75)
    finally:
        torch.rand = original
    own = ours(x, torch.zeros(2, dtype=torch.int64), lambda stream, count: noise).mean()
    order = ours.order(lambda stream, count: noise)
    hidden = torch.zeros(2, 16, dtype=torch.float64).scatter(1, order[:, ours.visible :], 1.0)
    loss.backward()
    own.backward()
    encoder, decoder = split_mae({**theirs.state_dict(), **gradients(theirs)})
    wanted = {f"backbone.{name}": g for name, g in in_our_names(backbone, encoder, head=False).items()}
    wanted |= {f"decoder.{name}": g for name, g in decoder.items()}
    learned = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    return {
        "mask": difference(hidden, mask.double()),
        "loss": difference(own, loss),
        "gradients": worst(learned, {name: wanted[name] for name in learned}),
        "positions": difference(sincos_2d((4, 4), 192, "sincos_mae").double(), positions),
    }


def split_mae(state: Named) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder under timm's names, and the decoder under ours."""
    encoder, decoder = {}, {}
    renamed = {"decoder_embed": "embed", "decoder_blocks": "blocks", "decoder_norm": "norm", "decoder_pred": "predict"}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first in renamed:
            decoder[f"{renamed[first]}.{rest.replace('.attn.', '.mixer.')}"] = tensor
        elif name == "mask_token":
            decoder[name] = tensor
        elif name == "decoder_pos_embed":
            decoder["positions"] = tensor[:, 1:]
        else:
            encoder[name] = tensor
    return encoder, decoder


def mae_finetuned(folder: Path) -> dict[str, float]:
    with imported(folder / "mae", "models_vit", stand_ins=old_timm()) as (code,):
        theirs = shaken(
            code.VisionTransformer(
                **MAE_SIZE, num_classes=10, global_pool=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)
            )
        )
    ours = create_model(
        "mae_b16", image_size=64, num_classes=10, depths=(3,), widths=(192,), heads=(3,), mlp_widths=(768,),
        positions="learned", pool="gap", pool_first=True,
    )  # fmt: skip
    move_positions_into(theirs, theirs.cls_token)
    return forward_and_gradients(ours, theirs, without_position_of_tokens(1), 64)


@torch.no_grad()
def move_positions_into(model: Any, *tokens: Tensor) -> None:
    """Adds the positions of the class token, and of one for distillation, to the tokens, and makes them zero."""
    for index, token in enumerate(tokens):
        token += model.pos_embed[:, index : index + 1]
    model.pos_embed[:, : len(tokens)] = 0.0


def without_position_of_tokens(count: int) -> Callable[[Named], Named]:
    """Our class token is the sum of theirs and its position; each of them has the gradient of the sum."""

    def renamed(state: Named) -> Named:
        table = state["pos_embed"].clone()
        table[:, :count] = 0.0
        return {**state, "pos_embed": table}

    return renamed


def deit(folder: Path) -> dict[str, float]:
    with imported(folder / "deit", "models", "losses", stand_ins=old_timm()) as (models, losses):
        theirs = shaken(
            models.DistilledVisionTransformer(
                img_size=64, embed_dim=192, depth=3, num_heads=3, num_classes=10,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
        )  # fmt: skip
        teacher = create_model("nfnet_w8d2", image_size=64, num_classes=10, seed=1).double()
        shaken(teacher)
        ours = create_model("deit_ti16_distilled", image_size=64, num_classes=10, depths=(3,), drop_path=0.0)
        move_positions_into(theirs, theirs.cls_token, theirs.dist_token)
        renamed = without_position_of_tokens(2)
        out = forward_and_gradients(ours, theirs, renamed, 64)
        x, labels = images(64), torch.tensor([3, 7])
        for kind, share in (("soft", 0.3), ("hard", 0.5)):
            criterion = losses.DistillationLoss(nn.CrossEntropyLoss(label_smoothing=0.1), teacher, kind, share, 2.0)
            wanted = criterion(x, theirs.train()(x), labels)
            objective = Distilled(ours, teacher, kind=kind, share=share, temperature=2.0, label_smoothing=0.1)
            found = objective(x, labels, lambda stream, count: torch.zeros(2, count)).mean()
            out[f"{kind} distillation loss"] = difference(found, wanted)
    return out


def poolformer(folder: Path, preset: str, name: str, size: int) -> dict[str, float]:
    with imported(folder / "poolformer", "models.poolformer", "models.metaformer", stand_ins=old_timm()) as codes:
        code = codes[1] if name.startswith("metaformer") else codes[0]
        theirs = shaken(getattr(code, name)(num_classes=10))
    ours = create_model(preset, image_size=size, num_classes=10)
    return forward_and_gradients(ours, theirs, from_poolformer, size)


def baseline(folder: Path, name: str) -> dict[str, float]:
    size = 224 if name.startswith("randformer") else 64
    with imported(folder / "metaformer", "metaformer_baselines", stand_ins=old_timm()) as (code,):
        theirs = shaken(getattr(code, name)(num_classes=10))
    return forward_and_gradients(create_model(name, image_size=size, num_classes=10), theirs, from_baseline, size)


def bit(folder: Path) -> dict[str, float]:
    with imported(folder / "big_transfer", "bit_pytorch.models") as (code,):
        theirs = shaken(code.KNOWN_MODELS["BiT-S-R50x1"](head_size=10))
    return forward_and_gradients(create_model("bit_r50x1", image_size=64, num_classes=10), theirs, from_bit, 64)


def from_bit(state: Named) -> dict[str, Tensor]:
    """The names of BiT's PyTorch code as timm's."""
    out = {}
    for name, tensor in state.items():
        part, *rest = name.split(".")
        if part == "body":
            block, unit, *rest = rest
            inside = ".".join(rest).replace("gn", "norm").replace("downsample.", "downsample.conv.")
            new = f"stages.{int(block[5:]) - 1}.blocks.{int(unit[4:]) - 1}.{inside}"
        else:
            known = {"root.conv": "stem.conv", "head.gn": "norm", "head.conv": "head.fc"}
            new = f"{known[f'{part}.{rest[0]}']}.{rest[1]}"
        out[new] = tensor
    return out


# --- steps -----------------------------------------------------------------------------------------------------------


def stepped(model: Backbone, rate: float, size: int, **optim: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All parameters of `model` after `STEPS` steps, and how far they have moved; each step has a direction of its own,
    and the gradient is that of the logits along it."""
    config = OptimConfig.model_validate({"learning_rate": rate, "clip": None, **optim})
    model, x, before = model.double().eval(), images(size), named(model)
    optimizer = build_optimizer(model, config)
    clip = AdaptiveGradientClipping(model, config.agc) if config.agc else None
    for step in range(STEPS):
        set_rate(optimizer, rate)
        (model(x) * direction_of(step)).sum().backward()
        if clip:
            clip()
        optimizer.step()
        optimizer.zero_grad()
    return named(model), moved(named(model), before)


def direction_of(step: int) -> Tensor:
    return torch.randn(2, 10, generator=generator(10 + step), dtype=torch.float64)


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}


def moved(after: Named, before: Named) -> dict[str, Tensor]:
    return {name: tensor - before[name] for name, tensor in after.items()}


def mae_steps(folder: Path) -> dict[str, float]:
    """AdamW with layer decay, as MAE fine-tunes. The class token's position, which ours has not, is held."""
    with imported(folder / "mae", "util.lr_decay", "models_vit", stand_ins=old_timm()) as (groups, code):
        theirs = shaken(
            code.VisionTransformer(
                **MAE_SIZE, num_classes=10, global_pool=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)
            )
        ).eval()
        rate, decay = 2e-3, 0.65
        spared = ["pos_embed", "cls_token", "dist_token"]  # as `no_weight_decay` of timm's ViT has it
        optimizer = torch.optim.AdamW(
            groups.param_groups_lrd(theirs, 0.05, no_weight_decay_list=spared, layer_decay=decay), lr=rate
        )
    theirs.pos_embed.register_hook(lambda g: torch.cat([torch.zeros_like(g[:, :1]), g[:, 1:]], dim=1))
    ours = create_model(
        "mae_b16", image_size=64, num_classes=10, depths=(3,), widths=(192,), heads=(3,), mlp_widths=(768,),
        positions="learned", pool="gap", pool_first=True,
    ).double()  # fmt: skip
    with torch.no_grad():
        theirs.pos_embed[:, 0] = 0.0
    load_weights(ours, theirs.state_dict(), "timm")
    before, x = named(ours), images(64)
    _, path = stepped(ours, rate, 64, name="adamw", weight_decay=0.05, layer_decay=decay)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        (theirs(x) * direction_of(step)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"20 steps of AdamW": worst(path, moved(in_our_names(ours, theirs.state_dict()), before))}


def mae_lars(folder: Path) -> dict[str, float]:
    """LARS with weight decay on the classifier behind frozen features, as MAE's linear probe has it without."""
    with imported(folder / "mae", "util.lars") as (code,):
        ours, theirs = (nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 10)).double() for _ in range(2))
        theirs.load_state_dict(ours.state_dict())
        before = named(ours)
        settings = {"learning_rate": 5.0, "momentum": 0.9, "weight_decay": 0.1}
        optimizers = (
            build_optimizer(ours, OptimConfig.model_validate({"name": "lars", **settings})),
            code.LARS(theirs.parameters(), lr=5.0, momentum=0.9, weight_decay=0.1),
        )
    x = torch.randn(2, 32, generator=generator(1), dtype=torch.float64)
    for step in range(STEPS):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            (model(x) * direction_of(step)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"20 steps of LARS": worst(moved(named(ours), before), moved(named(theirs), before))}


# --- JAX -------------------------------------------------------------------------------------------------------------


def in_float64() -> Any:
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    return jax


def nfnet_f0(folder: Path, thinner: int = 8) -> tuple[Any, dict[str, dict[str, Any]], Backbone]:
    """DeepMind's NFNet-F0 (as Haiku transforms it), its shaken parameters, and ours with the same, without dropout.

    Widths and groups are `thinner` times as thin as in F0; nothing else is changed.
    """
    jax = in_float64()
    import haiku as hk

    with imported(folder / "deepmind-research", "nfnets.base", "nfnets.nfnet") as (_, code):
        f0 = code.NFNet.variant_dict["F0"]
        widths = tuple(width // thinner for width in f0["width"])
        code.NFNet.variant_dict["thin"] = {**f0, "width": widths, "group_width": [128 // thinner] * 4}

        def apply(x: Any, training: bool) -> Any:
            return code.NFNet(10, "thin", stochdepth_rate=0.0, drop_rate=0.0)(x, is_training=training)["logits"]

        net = hk.transform(apply)
        shapes = jax.eval_shape(lambda key, x: net.init(key, x, True), jax.random.key(0), np.zeros((1, 64, 64, 3)))
    ours = create_model(
        "nfnet_f0", image_size=64, num_classes=10, seed=0, widths=widths, final_width=2 * widths[-1],
        stem_widths=(16, 32, 64, widths[0] // 2), group_width=128 // thinner, drop_path=0.0, dropout=0.0,
    )  # fmt: skip
    own = dict(shaken(ours).named_parameters())
    weights: dict[str, dict[str, Any]] = {key: {} for key in shapes}
    for name, (key, k) in nfnet_names(ours).items():
        weights[key][k] = to_haiku(own[name].detach(), shapes[key][k].shape)
    assert {key: set(values) for key, values in weights.items()} == {key: set(values) for key, values in shapes.items()}
    return net, weights, ours


def nfnet_names(model: Backbone) -> dict[str, tuple[str, str]]:
    """The Haiku module and parameter of each of our tensors."""
    convs = {"conv1": "conv0", "conv2": "conv1", "conv3": "conv1b", "conv4": "conv2", "shortcut": "conv_shortcut"}
    starts = np.cumsum([0, *model.config.depths])
    out = {}
    for name, _ in model.named_parameters():
        part, *rest = name.split(".")
        kind = rest[-1]
        if part == "stem":
            key = f"NFNet/~/stem_conv{rest[0]}"
        elif part == "stages":
            index = int(starts[int(rest[0])]) + int(rest[1])
            block = "NFNet/~/nf_block" + (f"_{index}" if index else "")
            if rest[2] == "skip_gain":
                key = block
            elif rest[2] == "squeeze_excite":
                key = f"{block}/~/squeeze_excite/~/linear" + ("" if rest[3] == "fc1" else "_1")
            else:
                key = f"{block}/~/{convs[rest[2]]}"
        else:
            key = {"final": "NFNet/~/final_conv", "head": "NFNet/~/linear"}[part]
        is_linear = "linear" in key
        out[name] = (key, {"weight": "w", "bias": "b" if is_linear else "bias"}.get(kind, kind))
    return out


def to_haiku(tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    array = tensor.numpy()
    array = (
        array.transpose(2, 3, 1, 0) if array.ndim == 4 and len(shape) == 4 else array.T if len(shape) == 2 else array
    )
    return np.array(array.reshape(shape))


def from_haiku(array: Any, like: Tensor) -> Tensor:
    array = np.asarray(array)
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T if array.ndim == 2 else array
    return torch.from_numpy(np.array(array)).reshape(like.shape)


def nfnet(folder: Path, thinner: int) -> dict[str, float]:
    jax = in_float64()
    net, weights, ours = nfnet_f0(folder, thinner)
    x, direction = images(64), torch.randn(2, 10, generator=generator(2), dtype=torch.float64)
    given = x.permute(0, 2, 3, 1).numpy()

    def objective(weights: Any) -> Any:
        logits = net.apply(weights, jax.random.key(0), given, True)
        return (logits * direction.numpy()).sum(), logits

    logits = ours(x)
    if thinner == 1:  # its gradients take XLA minutes on a CPU
        return {"logits": difference(logits, torch.from_numpy(np.array(objective(weights)[1])))}
    (_, theirs), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights)
    (logits * direction).sum().backward()
    wanted = {n: from_haiku(grads[k][p], ours.get_parameter(n)) for n, (k, p) in nfnet_names(ours).items()}
    return {
        "logits": difference(logits, torch.from_numpy(np.array(theirs))),
        "gradients": worst(gradients(ours), wanted),
    }


def nfnet_steps(folder: Path) -> dict[str, float]:
    """SGD with AGC of every parameter: gains and biases do not decay, the classifier's matrix is not clipped."""
    jax = in_float64()
    net, weights, ours = nfnet_f0(folder, 8)
    with imported(folder / "deepmind-research", "nfnets.optim", stand_ins={"dill": module("dill")}) as (code,):
        x = images(64)
        given = x.permute(0, 2, 3, 1).numpy()

        def objective(weights: Any, direction: Any) -> Any:
            return (net.apply(weights, jax.random.key(0), given, True) * direction).sum()

        def those(wanted: Callable[[str, str], bool]) -> dict[str, dict[str, Any]]:
            chosen = {key: {k: v for k, v in values.items() if wanted(key, k)} for key, values in weights.items()}
            return {key: values for key, values in chosen.items() if values}

        def is_vector(key: str, k: str) -> bool:  # as experiment_nfnets.py tells them apart
            return k == "b" or "gain" in k or "bias" in k

        def is_classifier(key: str, k: str) -> bool:
            return not is_vector(key, k) and "linear" in key and "squeeze_excite" not in key

        parts: list[dict[str, Any]] = [
            {"params": those(is_vector), "weight_decay": None},
            {"params": those(is_classifier), "clipping": None},
            {"params": those(lambda key, k: not is_vector(key, k) and not is_classifier(key, k))},
        ]
        rates = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 2e-3, "clipping": 0.01, "eps": 1e-3}
        optimizer = code.SGD_AGC(parts, **rates)
        names, states, gradient = nfnet_names(ours), optimizer.states(), jax.jit(jax.grad(objective))
        before, after = named(ours), weights
        for step in range(STEPS):
            after, states = optimizer.step(after, gradient(after, direction_of(step).numpy()), states)
    _, path = stepped(ours, 0.1, 64, name="sgd", momentum=0.9, weight_decay=2e-3, agc=0.01)
    wanted = {n: from_haiku(after[k][p], before[n]) - before[n] for n, (k, p) in names.items()}
    return {"20 steps of SGD + AGC": worst(path, wanted)}


def vit_module(folder: Path) -> Any:
    """big_vision's models/vit.py, without what only its trainer needs of `big_vision.utils` and `common`."""
    package = {name: module(name) for name in ("big_vision.utils", "big_vision.models.common")}
    checkpoints = {"flax.training.checkpoints": module("flax.training.checkpoints")}
    with imported(folder / "big_vision", "big_vision.models.vit", stand_ins={**package, **checkpoints}) as (code,):
        return code


def big_vision(folder: Path, pool: str, posemb: str) -> dict[str, float]:
    jax = in_float64()
    code = vit_module(folder)
    sizes = {"width": 64, "depth": 3, "mlp_dim": 128, "num_heads": 4}
    model = code._Model(10, patch_size=(8, 8), pool_type=pool, posemb=posemb, rep_size=pool == "gap", **sizes)
    x = images(32)
    given = x.permute(0, 2, 3, 1).numpy()
    params = model.init(jax.random.key(0), given)["params"]
    numbers = np.random.default_rng(0)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64) + 0.05 * numbers.standard_normal(a.shape), params)
    ours = create_model(
        "vit_b16", image_size=32, num_classes=10, depths=(3,), widths=(64,), heads=(4,), mlp_widths=(128,),
        stem_kernel=8, stem_stride=8, activation="gelu_tanh", positions="learned" if posemb == "learn" else "sincos",
        pool={"tok": "token"}.get(pool, pool), prefix_tokens=int(pool == "tok"),
        representation_size=64 if pool == "gap" else None,
    ).double()  # fmt: skip
    direction = torch.randn(2, 10, generator=generator(2), dtype=torch.float64)

    def objective(params: Any, direction: Any) -> Any:
        logits = model.clone(dtype_mm="float64").apply({"params": params}, given)[0]
        return (logits * direction).sum(), logits

    (_, theirs), grads = jax.value_and_grad(objective, has_aux=True)(params, direction.numpy())
    fixed = {} if posemb == "learn" else {"pos_embedding": ours.state_dict()["positions.0"].clone()}
    load_weights(ours, flat(params) | fixed, "flax")
    logits = ours(x)
    (logits * direction).sum().backward()
    wanted = in_our_names(ours, flat(grads) | fixed, "flax")
    learned = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    found = {
        "logits": difference(logits, torch.from_numpy(np.array(theirs))),
        "gradients": worst(learned, {name: wanted[name] for name in learned}),
    }
    for what, momentum in (("float64", torch.float64), ("bfloat16", torch.bfloat16)):
        before, after = named(ours), adafactor_steps(folder, params, objective, what)
        optimizers.MOMENTUM, kept = momentum, optimizers.MOMENTUM
        mine = copy.deepcopy(ours)
        mine.zero_grad()
        _, path = stepped(mine, 1e-3, 32, name="adafactor", betas=(0.9, 0.999), weight_decay=0.1)
        optimizers.MOMENTUM = kept
        other = moved(in_our_names(ours, flat(after) | fixed, "flax"), before)
        found[f"20 steps of Adafactor, momentum in {what}"] = worst(
            without_key_biases({name: path[name] for name in learned}),
            without_key_biases({name: other[name] for name in learned}),
        )
    return found


def without_key_biases(state: Named) -> dict[str, Tensor]:
    """Attention is the same whatever is added to all keys: the gradient of their bias is rounding, which Adafactor
    divides by its own size."""
    out = dict(state)
    for name, tensor in state.items():
        if name.endswith(("qkv.bias", "kv.bias")):
            parts = list(tensor.chunk(3 if name.endswith("qkv.bias") else 2))
            parts[-2] = torch.zeros_like(parts[-2])
            out[name] = torch.cat(parts)
    return out


def adafactor_steps(folder: Path, params: Any, objective: Callable[..., Any], momentum: str) -> Any:
    """Their parameters after `STEPS` steps of big_vision's Adafactor, with its weight decay of kernels."""
    import jax
    import jax.numpy as jnp
    import optax

    stand_ins = {"big_vision.utils": module("big_vision.utils")}
    with imported(folder / "big_vision", "big_vision.optax", stand_ins=stand_ins) as (code,):
        rule = optax.chain(
            code.scale_by_adafactor(dtype_momentum=jnp.dtype(momentum)),
            optax.scale(1e-3),
            optax.add_decayed_weights(
                1e-3 * 0.1, jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
            ),
            optax.scale(-1.0),
        )
        state, gradient = rule.init(params), jax.jit(jax.grad(lambda params, d: objective(params, d)[0]))
        update = jax.jit(rule.update)
        for step in range(STEPS):
            updates, state = update(gradient(params, direction_of(step).numpy()), state, params)
            params = optax.apply_updates(params, updates)
    return params


def flat(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """Flax's nested arrays by the names that its archives have."""
    if not hasattr(tree, "items"):
        return {prefix: torch.from_numpy(np.array(tree))}
    return {n: t for key, value in tree.items() for n, t in flat(value, f"{prefix}/{key}" if prefix else key).items()}


POOLFORMERS = {
    "metaformer_id_s12": ("poolformer_s12_identity", 64),
    "metaformer_pppa_s12_224": ("poolformer_s12_pppa", 224),
    "metaformer_ppaa_s12_224": ("poolformer_s12_ppaa", 224),
    "metaformer_pppf_s12_224": ("poolformer_s12_pppf", 224),
    "metaformer_ppff_s12_224": ("poolformer_s12_ppff", 224),
    "poolformer_s12": ("poolformer_s12", 64),
}
BASELINES = ("identityformer_s12", "randformer_s12", "poolformerv2_s12", "convformer_s18", "caformer_s18")
ROWS: tuple[Row, ...] = (
    ("MAE, pretraining", mae),
    ("MAE, fine-tuned ViT", mae_finetuned),
    ("MAE, fine-tuned ViT", mae_steps),
    ("MAE, linear probe", mae_lars),
    ("DeiT, distilled", deit),
    *((f"PoolFormer, {n}", partial(poolformer, preset=p, name=n, size=s)) for n, (p, s) in POOLFORMERS.items()),
    *((f"MetaFormer baselines, {name}", partial(baseline, name=name)) for name in BASELINES),
    ("BiT, R50x1", bit),
    ("NFNet-F0", partial(nfnet, thinner=1)),
    ("NFNet-F0, an eighth as wide", partial(nfnet, thinner=8)),
    ("NFNet-F0, an eighth as wide", nfnet_steps),
    *((f"big_vision ViT, {p}, {e}", partial(big_vision, pool=p, posemb=e))
      for p, e in (("gap", "sincos2d"), ("tok", "learn"), ("map", "learn"))),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    if not arguments or not Path(arguments[0]).is_dir():
        print(__doc__)
        return 2
    folder, chosen = Path(arguments[0]), arguments[1:]
    torch.manual_seed(0)
    print("| authors' code | compared | difference | |\n| --- | --- | ---: | --- |")
    failed = 0
    for name, compare in ROWS:
        if chosen and not any(name.lower().startswith(word.lower()) for word in chosen):
            continue
        start = time.perf_counter()
        for what, found in compare(folder).items():
            row = f"{name}: {what}"
            told = "" if found <= LIMIT else REASONS.get(row, "**above 1e-6**")
            failed += not (found <= LIMIT or row in REASONS)
            print(f"| {name} | {what} | {found:.1e} | {told} |", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
