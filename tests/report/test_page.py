import base64
import copy
import hashlib
import io
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import isoflop.report
from isoflop.report import write_report
from isoflop.report.figure import png_text
from isoflop.report.law import answer_sentence
from isoflop.report.page import Picture, render


def test_the_report_is_one_small_file(planted: Any, tmp_path: Path) -> None:
    path = write_report(planted.rows, planted.answer, planted.curves, tmp_path / "report.html")
    assert path.stat().st_size < 3e6
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_five_hundred_runs_take_less_than_three_megabytes(plant_study: Any, tmp_path: Path) -> None:
    study = plant_study(sizes=8, rates=(1e-3, 3e-3, 1e-2, 2e-2, 5e-2), points=1000)
    rows = study.rows[:499] + study.rows[-1:]
    assert len(rows) == 500
    path = write_report(rows, study.answer, study.curves, tmp_path / "report.html")
    assert path.stat().st_size < 3e6


def test_the_policy_allows_exactly_the_scripts_and_styles_of_the_page(planted: Any) -> None:
    page = render(planted.rows, planted.answer, planted.curves)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert not re.search(r"(script-src|style-src|style-src-elem) [^;]*unsafe-inline", policy[1])
    for text in re.findall(r"<script>(.*?)</script>", page, re.S) + re.findall(r"<style>(.*?)</style>", page, re.S):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"sha256-{digest}" in policy[1].replace("&#x27;", "'")


def test_hostile_text_stays_text(hostile: Any) -> None:
    page = render(hostile.rows, hostile.answer, hostile.curves)
    without_plotly = "".join(part for part in page.split("<script>") if "plotly.js" not in part)
    for text in (
        "<img src",
        "<svg",
        "<base",
        "<a href='",
        "<style>*{display:none}",
        "<!--",
        "<meta http-equiv=refresh",
    ):
        assert text not in without_plotly
    assert page.count("<script") == 3
    assert "\u2028" not in without_plotly.split('id="page-data"')[1]


@pytest.fixture(scope="module")
def small(plant_study: Any) -> Any:
    return plant_study(sizes=3, rates=(1e-2, 2e-2), points=30)


RESULTS = {"frontier", "profiles", "optima", "agreement", "efficiency", "learning-rates", "hours", "ablation"}


@pytest.mark.parametrize(
    ("change", "absent"),
    [
        (lambda s: (s.rows.clear(), s.answer.clear()), {*RESULTS, "cost", "curves", "numbers", "runs", "reproduce"}),
        (lambda s: [r.update(status="planned") for r in s.rows], RESULTS),
        (lambda s: [r.update(heldout_loss=math.nan) for r in s.rows], RESULTS),
        (lambda s: [r.update(heldout_loss=None, images="12") for r in s.rows], RESULTS),
        (
            lambda s: (s.curves.clear(), s.answer.update(study={}, target_flops=None, final=None, transfer=None)),
            {"curves", "reproduce", "transfer", "transfer-numbers"},
        ),
        (
            lambda s: ([c.update(train_loss=[math.nan] * 9) for c in s.curves.values()],
                       [r.pop("budget") for r in s.rows]),
            {"curves"},
        ),
        (lambda s: s.rows.__delitem__(slice(1, None)), {"profiles", "efficiency", "learning-rates", "ablation"}),
        (lambda s: [e.update(law={"alpha": 1}, frontier=None) for e in s.answer["families"].values()], {"agreement"}),
        (lambda s: s.answer.update(families={"vit": None}, best="vit"), {"agreement"}),
        (
            lambda s: (s.answer["families"]["vit"].update(interval=[None, math.nan], p_best=None),
                       [r.update(train_flops=0.0) for r in s.rows[:9]]),
            set(),
        ),
    ],
)  # fmt: skip
def test_what_has_nothing_to_show_is_absent(small: Any, change: Any, absent: set[str]) -> None:
    study = copy.deepcopy(small)
    change(study)
    page = render(study.rows, study.answer, study.curves)
    sections = re.findall('<section id="([^"]*)"', page)
    assert not absent & set(sections)
    assert absent >= RESULTS or "frontier" in sections
    assert 'class="empty"' not in page
    counted = re.findall(r'class="count">Figure (\d+)<', page)
    assert list(map(int, counted)) == list(range(1, len(counted) + 1))
    assert re.findall('<li><a href="#([^"]*)"', page) == [s for s in sections if s not in ("answer", "frontier")]


def test_one_point_a_family_is_drawn(planted: Any) -> None:
    rows = [next(r for r in planted.rows if r["family"] == family) for family in ("vit", "poolformer", "nfnet")]
    page = render(rows, {}, {})
    assert "3 of 3 runs have finished" in page


def test_the_answer_is_one_sentence_with_its_outcome(planted: Any) -> None:
    text = answer_sentence(planted.rows, planted.answer)
    assert text.startswith("With 6×10¹² FLOPs of training, train poolformer_w20 on ")
    assert "(90 % interval " in text
    assert "with probability 0.93" in text
    assert text.endswith("inside the interval.")


def test_weights_to_start_from_are_a_table(planted: Any) -> None:
    rows, answer = planted.rows, planted.answer
    probe = {"images": 800, "accuracy": 0.679, "loss": 1.02, "judged": 200}
    start = {"weights": "timm:<b>", "model": "timm:resnet18", "image_size": 96, "licence": "apache-2.0", "probe": probe}
    page = render(rows, {**answer, "starts": {"tuned": start, "odd": {"probe": "none"}}}, {})
    assert "timm:&lt;b&gt;" in page
    assert all(told in page for told in ("apache-2.0", "0.679", "800"))
    assert 'id="starts"' not in render(rows, answer, {})


def evaluation(classes: int) -> dict[str, Any]:
    names = [f"<b>class {k}" for k in range(classes)]
    counts = [[9 if i == j else int(j == 0) for j in range(classes)] for i in range(classes)]
    told = {"part": "the test part", "classes": [{"name": name} for name in names]}
    return {**told, "confusion": counts if classes <= 100 else None, "confusions": [[names[1], names[0], 1]]}


def test_the_confusions_of_what_is_handed_over_are_on_the_page() -> None:
    """As numbers, of many classes as a picture, of yet more as a list; damaged ones are left out."""
    pages = {classes: render([], {}, {}, (), evaluation(classes)) for classes in (3, 50, 200)}
    assert all('href="#confusion"' in page and "<b>class" not in page for page in pages.values())
    assert "<td class=hit" in pages[3]
    assert "29 images: the test part." in pages[3]
    assert 'class="map"' in pages[50]
    assert all('id="confusions-table"' in pages[classes] for classes in (50, 200))
    for damage in ({"confusion": [[1]]}, {"confusion": [[1, 2, 3]] * 2 + [["<b>"] * 3]}, {"classes": None}):
        assert 'href="#confusion"' not in render([], {}, {}, (), {**evaluation(3), "confusions": None, **damage})


def test_pictures_are_sound_and_attention_is_a_figure() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = io.BytesIO(base64.b64decode(png_text(pixels)))
    assert np.array_equal(np.asarray(Image.open(file)), pixels)
    page = render([], {"attention": {"pixels": [[1.0, 2.0], [3.5, 4.0]]}}, {}, [Picture("<b>", "seen", "AAAA")])
    assert 'id="attention-distance"' in page
    assert '<img src="data:image/png;base64,AAAA" alt="&lt;b&gt;"' in page
    for damage in ([[1.0], ["x"]], [[]], "no", [[-1.0]]):
        assert 'id="attention-distance"' not in render([], {"attention": {"pixels": damage}}, {})


def test_an_outcome_outside_its_interval_is_said_so(planted: Any) -> None:
    answer = copy.deepcopy(planted.answer)
    answer["families"][answer["best"]]["interval"] = [0.1, 0.2]
    assert answer_sentence(planted.rows, answer).endswith("above the interval.")


DAMAGE = [
    None,
    math.nan,
    math.inf,
    -1.0,
    0.0,
    0,
    "x",
    "",
    True,
    [],
    {},
    1e308,
    5e-324,
    -1e-300,
    "12",
    "<script>alert(1)</script>",
]


def damaged(value: Any, rng: random.Random, rate: float) -> Any:
    """`value` with some of its parts replaced by others, and some left out."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if rng.random() > rate / 2}
        return {k: rng.choice(DAMAGE) if rng.random() < rate else damaged(v, rng, rate) for k, v in kept.items()}
    if isinstance(value, list):
        return [rng.choice(DAMAGE) if rng.random() < rate / 3 else damaged(v, rng, rate) for v in value]
    return value


def test_damaged_results_give_a_page_all_the_same(small: Any) -> None:
    study = small
    for seed in range(60):
        rng = random.Random(seed)
        rows = [damaged(row, rng, 0.08) for row in [*rng.sample(study.rows, rng.choice([1, 4, 12])), study.rows[-1]]]
        curves = {str(row.get("run_id")): study.curves.get(str(row.get("run_id")), {}) for row in rows}
        page = render(rows, damaged(study.answer, rng, 0.05), damaged(curves, rng, 0.1))
        assert page.endswith("</html>\n")
        assert page.count("<script") == 3


def test_the_vendored_plotly_is_the_published_one_and_the_one_that_judges_our_figures() -> None:
    vendor = Path(isoflop.report.__file__).parent / "vendor"
    bundle, note = (vendor / "plotly-cartesian.min.js").read_bytes(), (vendor / "README.md").read_text()
    assert hashlib.sha256(bundle).hexdigest() in note
    offline = pytest.importorskip("plotly.offline", reason="plotly is not installed")
    assert f"v{offline.get_plotlyjs_version()}\n".encode() in bundle[:200]
