"""Numbers that papers print about their models, which our presets have to reproduce.

Values are as printed, with the printed number of digits. Parameters are in millions, `gmacs` in 10^9 multiply-adds of
one image. ViT sizes are without the classifier (2106.04560 counts the mean-pooled model, 2305.13035 the one with
attention pooling), as are BiT and Mixer; all others have 1,000 classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """One printed row: the preset it is about, at a side of `image_size` pixels; empty strings are not printed."""

    preset: str
    image_size: int
    parameters: str
    gmacs: str
    source: str
    classifier: bool = True
    options: dict[str, Any] = field(default_factory=dict)


def _rows(source: str, image_size: int, table: str, classifier: bool = True) -> list[Published]:
    rows = []
    for line in table.strip().splitlines():
        name, parameters, gmacs = line.split()
        rows.append(Published(name, image_size, parameters, "" if gmacs == "-" else gmacs, source, classifier))
    return rows


PUBLISHED: tuple[Published, ...] = (
    *_rows(
        "arXiv 2106.04560 (mean) and 2305.13035 (attention pooling)",
        224,
        """
        vit_xs16           5.0     -
        vit_xs28           5.4     -
        vit_ti16           5.5     -
        vit_ti16_map       6.0     -
        vit_s16            21.7    -
        vit_s16_map        23.4    -
        vit_m16            38.3    -
        vit_m16_map        41.5    -
        vit_b16            85.8    -
        vit_b16_map        92.9    -
        vit_l16            303.3   -
        vit_l16_map        315.9   -
        vit_so150m14       130.2   -
        vit_so150m14_map   137.4   -
        vit_so400m14       412.4   -
        vit_so400m14_map   427.7   -
        vit_h14            630.8   -
        vit_h14_map        650.4   -
        vit_giant14        1011.2  -
        vit_giant14_map    1036.4  -
        vit_gigantic14     1842.8  -
        vit_gigantic14_map 1881.1  -
        vit_e14            3805    -
        vit_e14_map        3873    -
        """,
        classifier=False,
    ),
    *_rows("arXiv 2102.06171, table 1", 256, "nfnet_f0 71.5 12.38"),
    *_rows("arXiv 2102.06171, table 1", 320, "nfnet_f1 132.6 35.54"),
    *_rows("arXiv 2102.06171, table 1", 352, "nfnet_f2 193.8 62.59"),
    *_rows("arXiv 2102.06171, table 1", 416, "nfnet_f3 254.9 114.76"),
    *_rows("arXiv 2102.06171, table 1", 512, "nfnet_f4 316.1 215.24"),
    *_rows("arXiv 2102.06171, table 1", 544, "nfnet_f5 377.2 289.76"),
    *_rows("arXiv 2102.06171, table 1", 576, "nfnet_f6 438.4 377.28"),
    *_rows("computed from arXiv 2102.06171, section 4", 608, "nfnet_f7 499.5 478.78"),
    *_rows("arXiv 2102.06171, section 5", 512, "nfnet_f4+ 527 367"),
    *_rows("computed from arXiv 2310.16764", 224, "nfnet_f7+ 832.9 111.2"),
    *_rows(
        "arXiv 1912.11370, authors' models",
        224,
        """
        bit_r50x1  23.5  -
        bit_r50x3  211.2 -
        bit_r101x1 42.5  -
        bit_r101x3 381.8 -
        bit_r152x2 232.2 -
        bit_r152x4 928.3 -
        """,
        classifier=False,
    ),
    *_rows(
        "arXiv 2111.11418, tables 1 and 5",
        224,
        """
        poolformer_s12           11.92 1.8
        poolformer_s24           21.39 3.4
        poolformer_s36           30.86 5.0
        poolformer_m36           56.17 8.8
        poolformer_m48           73.47 11.6
        poolformer_s12_identity  11.9  1.8
        poolformer_s12_random    11.9  3.3
        poolformer_s12_depthwise 11.9  1.8
        poolformer_s12_nomlp     2.5   0.2
        poolformer_s12_pppa      14.0  1.9
        poolformer_s12_ppaa      16.5  2.5
        poolformer_s12_pppf      11.9  1.8
        poolformer_s12_ppff      12.2  1.9
        """,
    ),
    *_rows(
        "arXiv 2210.13452, table 2",
        224,
        """
        convformer_s18 27  3.9
        convformer_s36 40  7.6
        convformer_m36 57  12.8
        convformer_b36 100 22.6
        caformer_s18   26  4.1
        caformer_s36   39  8.0
        caformer_m36   56  13.2
        caformer_b36   99  23.2
        """,
    ),
    # The parameters are those of the authors' repository, whai362/PVT.
    *_rows("arXiv 2102.12122", 224, "pvt_ti 13.2 1.9\npvt_s 24.5 -\npvt_m 44.2 -\npvt_l 61.4 -"),
    *_rows(
        "arXiv 2106.13797",
        224,
        """
        pvt_v2_b0 3.4  -
        pvt_v2_b1 13.1 -
        pvt_v2_b2 25.4 -
        pvt_v2_b3 45.2 -
        pvt_v2_b4 62.6 -
        pvt_v2_b5 82.0 -
        """,
    ),
    # As in the authors' repository, microsoft/Swin-Transformer, where these models are called SwinMLP.
    *_rows(
        "arXiv 2103.14030, table 7", 256, "swin_mixer_t_d24 20 4.0\nswin_mixer_t_d12 21 4.0\nswin_mixer_t_d6 23 4.0"
    ),
    Published(
        "swin_mixer_b_d24", 224, "61", "10.4", "arXiv 2103.14030, table 7 (MACs are at 224 px)", options={"window": 7}
    ),
    *_rows("arXiv 2105.08050, table 2 (the MACs are half of the printed 31.6 GFLOPs)", 224, "gmlp_b16 73 15.8"),
    # As in the repository facebookresearch/deit; B24 with patches of 16 as microsoft/Swin-Transformer cites it.
    *_rows("arXiv 2105.03404", 224, "resmlp_s12 15 3\nresmlp_s24 30 6.0\nresmlp_b24 116 23.0\nresmlp_b24_8 129 100"),
    *_rows("arXiv 2105.01601, as microsoft/Swin-Transformer cites it", 224, "mixer_b16 59 -", classifier=False),
)

# Where a printed number is not what the definition gives, and why.
DISPUTED: dict[tuple[str, str], str] = {
    ("poolformer_m48", "gmacs"): "11.53 of matrix products; the printed 11.6 counts norms and pooling as well",
    ("pvt_v2_b0", "parameters"): "3.67 in timm and ours; the printed 3.4 leaves out the classifier",
    ("pvt_v2_b1", "parameters"): "14.01 in timm and ours; printed 13.1 (13.50 without the classifier)",
    ("gmlp_b16", "gmacs"): "15.72 of matrix products; the printed 15.8 counts elementwise products as well",
}

# GFLOPs (2 x MACs) at 224 and 384 px (arXiv 2106.04560, table 2). See `elementwise_flops`.
VIT_GFLOPS: dict[str, tuple[str, str]] = {
    "vit_xs28": ("0.7", "2.0"),
    "vit_xs16": ("2.2", "7.8"),
    "vit_s32": ("2.3", "6.9"),
    "vit_ti16": ("2.5", "9.5"),
    "vit_b32": ("8.7", "26.0"),
    "vit_s16": ("9.2", "31.2"),
    "vit_b28": ("11.3", "30.5"),
    "vit_b16": ("35.1", "111.3"),
    "vit_l16": ("122.9", "382.8"),
    "vit_giant14": ("533.1", "1596.4"),
    "vit_gigantic14": ("965.3", "2859.9"),
}


def elementwise_flops(tokens: int, width: int, depth: int, mlp_width: int, heads: int) -> int:
    """What VIT_GFLOPS holds beyond matrix products: operations on single elements.

    The paper does not say how it counts. These constants are fitted, not derived: three per attention score, four per
    hidden unit of the MLP, and 55 per channel of a token in a block make all 22 printed cells come out to their digit.
    """
    return depth * tokens * (3 * heads * tokens + 4 * mlp_width + 55 * width)
