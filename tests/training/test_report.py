import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from bert_jax.errors import UserError
from bert_jax.training.report import MAX_POINTS, SamplePrediction, thin_out, write_report

_VOID = {"meta", "br", "hr", "img", "link", "input"}


class _Page(HTMLParser):
    """Collects what the tests ask about, and checks that elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [values[name] for _, values in self.elements if values.get(name) is not None]

    def count(self, tag: str) -> int:
        return sum(element == tag for element, _ in self.elements)


def _report(tmp_path, metrics=(), **overrides):
    arguments = {
        "title": "pretraining in demo",
        "config": '{\n  "total_steps": 1000\n}',
        "environment": {"jax": "0.10.2"},
        "summary": {"nats below the baseline": 3.06512},
    }
    path = tmp_path / "report.html"
    write_report(path, metrics=metrics, **(arguments | overrides))
    return path.read_text(encoding="utf-8")


def _run(steps, validation_every=100):
    for step in steps:
        record = {
            "step": step,
            "train/mlm_loss": 10 / step,
            "train/learning_rate": 1e-4,
            "speed/tokens_per_second": 54321.0,
        }
        if step % validation_every == 0:
            record |= {
                "validation/mlm_loss": 11 / step,
                "validation/mlm_accuracy": 0.425,
                "validation/unigram_loss": 6.25,
            }
        yield record


def test_the_page_shows_what_it_was_given(tmp_path):
    page = _Page(
        _report(
            tmp_path,
            list(_run(range(10, 1001, 10))),
            summary={"nats": 3.06512, "tokens": 1234567, "time": "4 min", "many": 98304000},
            notes=["Resumed at step 300 with another jax version."],
        )
    )
    for shown in (
        "pretraining in demo",
        "Resumed at step 300 with another jax version.",
        "3.065",
        "1,234,567",
        "98.3M",
        "4 min",
        '"total_steps": 1000',
        "0.10.2",
        "Masked-token loss (nats)",
        "unigram baseline 6.25",
        "Masked-token accuracy",
        "42.5%",
        "54.32k",
    ):
        assert shown in page.text
    assert "Next-sentence" not in page.text  # A run without it gets no empty plot.
    assert page.count("figure") == page.count("svg") == 4


def test_the_page_needs_nothing_from_outside(tmp_path):
    html = _report(tmp_path, list(_run(range(100, 1001, 100))))
    page = _Page(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
    assert page.attributes("src") == []
    assert all(target.startswith("#") for target in page.attributes("xlink:href"))
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def test_figures_share_no_ids_and_refer_to_their_own(tmp_path):
    page = _Page(_report(tmp_path, list(_run(range(100, 1001, 100)))))
    ids = page.attributes("id")
    assert ids and len(ids) == len(set(ids))
    targets = {target.removeprefix("#") for target in page.attributes("xlink:href")}
    for values in page.attributes("clip-path"):
        targets |= set(re.findall(r"url\(#([^)]*)\)", values))
    assert targets and targets <= set(ids)


def test_figures_are_described_in_words(tmp_path):
    page = _Page(_report(tmp_path, list(_run(range(100, 1001, 100)))))
    labels = page.attributes("aria-label")
    assert len(labels) == page.count("figure")
    assert labels[0] == (
        "Masked-token loss (nats) by step: training from 0.1 to 0.01; "
        "validation from 0.11 to 0.011; unigram baseline from 6.25 to 6.25."
    )


def test_figures_are_well_formed_and_take_the_page_s_colours(tmp_path):
    html = _report(tmp_path, list(_run(range(100, 1001, 100))))
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(svgs) == 4
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert not re.search(r"#0[01]0[0-9]0[0-9]", svg)
        assert "<style" not in svg and "font-family" not in svg
    # Training, validation, and a dashed baseline.
    assert "var(--series-0)" in svgs[0] and "var(--series-1)" in svgs[0]
    assert "stroke-dasharray" in svgs[0]


def test_text_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    html = _report(
        tmp_path,
        [{"step": 1, f"train/{evil}": 1.0}],
        title=evil,
        config=evil,
        environment={evil: evil},
        summary={evil: evil},
        samples=[SamplePrediction(f"{evil} [MASK]", evil, [(evil, 1.0)])],
        notes=[evil],
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 10


def test_samples_show_the_mask_and_which_guess_is_right(tmp_path):
    sample = SamplePrediction("the [MASK] of france", "capital", [("king", 0.5), ("capital", 0.25)])
    html = _report(tmp_path, samples=[sample])
    assert "the <mark>[MASK]</mark> of france" in html
    assert re.search(r"<li>king 50.0%</li>", html)
    assert re.search(r'<li class="right">capital 25.0%', html)


def test_unknown_scalars_get_plots_of_their_own_shared_by_the_groups(tmp_path):
    metrics = [
        {"step": 1, "train/f1": 0.5, "train/tag_loss": 2.0, "loss": 1.0},
        {"step": 2, "train/f1": 0.5, "validation/f1": 0.625},
    ]
    page = _Page(_report(tmp_path, metrics))
    assert "Other metrics" in page.text
    assert {"f1", "tag loss", "loss"} <= set(page.text.split("\n"))
    assert page.count("figure") == 3
    assert any(
        label == "f1 by step: training from 0.5 to 0.5; validation from 0.625 to 0.625."
        for label in page.attributes("aria-label")
    )


@pytest.mark.parametrize(
    ("metrics", "figures"),
    [
        ([], 0),
        ([{"step": 5}], 0),
        ([{"step": 5, "train/loss": 2.0}], 1),
        ([{"step": 5, "train/loss": math.nan}], 1),
        ([{"step": 5, "validation/unigram_loss": 6.0}], 1),
    ],
)
def test_few_or_no_points_are_fine(tmp_path, metrics, figures):
    page = _Page(_report(tmp_path, metrics))
    assert page.count("figure") == figures
    assert ("Nothing was logged." in page.text) == (figures == 0)


def test_what_is_not_finite_is_counted_and_not_drawn(tmp_path):
    values = [1.0, math.inf, 2.0, math.nan]
    metrics = [{"step": step, "train/loss": value} for step, value in enumerate(values)]
    page = _Page(_report(tmp_path, metrics))
    assert "training (2 not finite) nan" in page.text


def test_a_long_run_stays_under_a_megabyte(tmp_path):
    names = [f"train/{name}" for name in ("loss", "mlm_loss", "nsp_loss", "mlm_accuracy")]
    metrics = [
        {"step": step} | {name: math.sin(step * 0.7) + number for number, name in enumerate(names)}
        for step in range(20_000)
    ]
    assert len(_report(tmp_path, metrics)) < 400_000


def test_the_same_run_gives_the_same_page(tmp_path):
    metrics = list(_run(range(100, 1001, 100)))
    assert _report(tmp_path, metrics) == _report(tmp_path, metrics)


def test_an_unwritable_place_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent/report.html cannot be written"):
        _report(tmp_path / "absent")


def test_thinning_out_keeps_the_outline():
    points = [(step, math.sin(step / 1000)) for step in range(50_000)]
    points[12_345] = (12_345, 9.0)
    points[34_567] = (34_567, -9.0)
    kept = thin_out(points)
    assert len(kept) <= MAX_POINTS
    assert set(kept) <= set(points) and kept == sorted(kept)
    assert {points[0], points[-1], points[12_345], points[34_567]} <= set(kept)
    # Evenly spread: no stretch of the curve is left out.
    gaps = [later[0] - earlier[0] for earlier, later in zip(kept, kept[1:], strict=False)]
    assert max(gaps) < 4 * len(points) / MAX_POINTS


@pytest.mark.parametrize("count", [0, 1, 4, MAX_POINTS])
def test_few_points_are_not_thinned_out(count):
    points = [(step, float(step)) for step in range(count)]
    assert thin_out(points) == points
