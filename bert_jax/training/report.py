"""``report.html``: a run on one page, in one file that needs no network.

The page shows the headline numbers, the curves of every scalar in the metrics log, sample
predictions, the config and the environment. It knows no task: a table names the curves that belong
on one plot, and a scalar that the table does not know gets a small plot of its own.
"""

import importlib.resources
import io
import itertools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bert_jax.training.atomic_file import write_atomically
from bert_jax.training.metrics_log import Record

MAX_POINTS = 1000
"""Points that a curve keeps; more than a plot this wide can show."""

_MARKED_POINTS = 40  # A curve of so few points shows each as a dot.
_SIZE_INCHES = (5.6, 2.8)
_FONT_POINTS = 11.0
_TICK_STEPS = (1, 2, 2.5, 5, 10)

# Matplotlib draws in these stand-in colours, which are then replaced by the style sheet's
# variables: the page is light or dark as its reader's screen is.
_INK, _GRID = "#010203", "#040506"
_STROKES = ("#010101", "#010102", "#010103", "#010104", "#010105", "#010106")
_VARIABLES = {_INK: "var(--muted)", _GRID: "var(--grid)"} | {
    stroke: f"var(--series-{number})" for number, stroke in enumerate(_STROKES)
}


class SamplePrediction(NamedTuple):
    """What the model makes of one example.

    Attributes:
      text: the example; ``[MASK]`` in it is set apart.
      answer: the right answer.
      guesses: the model's best answers with their probabilities, best first.
    """

    text: str
    answer: str
    guesses: Sequence[tuple[str, float]]


class _Series(NamedTuple):
    """A curve: the metric's name and how the legend calls it."""

    name: str
    label: str
    is_baseline: bool = False


class _Plot(NamedTuple):
    """A plot, and how its values are written."""

    title: str
    series: Sequence[_Series]
    format: Callable[[float], str]


class _LegendEntry(NamedTuple):
    """A curve in a figure's legend: its colour, and the values that it starts and ends with."""

    label: str
    colour: str
    is_baseline: bool
    first: str
    last: str


class _Figure(NamedTuple):
    """A drawn plot; ``svg`` is markup."""

    title: str
    svg: str
    legend: Sequence[_LegendEntry]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    metrics: Sequence[Record],
    config: str,
    environment: Mapping[str, str],
    summary: Mapping[str, str | float],
    samples: Sequence[SamplePrediction] = (),
    notes: Sequence[str] = (),
) -> None:
    """Writes the report of a run, atomically.

    Args:
      path: the file to write.
      title: heading of the page.
      metrics: what :func:`bert_jax.training.metrics_log.read_metrics` returned.
      config: the resolved config, as indented JSON.
      environment: what the run ran on; see :func:`bert_jax.training.environment.environment`.
      summary: the headline numbers by their labels, in order; text is shown as it is.
      samples: examples with the model's answers.
      notes: sentences that a reader must know, such as that the run was resumed elsewhere.

    Raises:
      UserError: when the file cannot be written.
    """
    import jinja2  # Here, as Matplotlib below: a run needs them only when it ends.

    template = importlib.resources.files("bert_jax.training").joinpath("report.html.jinja")
    page = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters["percent"] = "{:.1%}".format
    plots, other_plots = _choose_plots(metrics)
    html = page.from_string(template.read_text(encoding="utf-8")).render(
        title=title,
        summary={label: _format_headline(value) for label, value in summary.items()},
        figures=[_draw(plot, metrics, f"plot{n}") for n, plot in enumerate(plots)],
        other_figures=[_draw(plot, metrics, f"other{n}") for n, plot in enumerate(other_plots)],
        config=config,
        environment=environment,
        samples=samples,
        notes=notes,
    )
    # A directory's name, which is in the title, may be no Unicode.
    write_atomically(path, html.encode("utf-8", "backslashreplace"))


def _format_headline(value: str | float) -> str:
    if isinstance(value, str):
        return value
    is_countable = isinstance(value, int) and abs(value) < 1e7
    return f"{value:,}" if is_countable else _format_number(value)


def _format_number(value: float) -> str:
    """Four significant digits, with a suffix where there are more: 12345.0 -> "12.35k"."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1e4:
        for divisor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= divisor:
                return f"{value / divisor:.4g}{suffix}"
    return f"{value:.4g}"


def _format_percent(value: float) -> str:
    return f"{100 * value:.3g}%" if math.isfinite(value) else str(value)


def _train_and_validation(metric: str) -> tuple[_Series, _Series]:
    return (
        _Series(f"train/{metric}", "training"),
        _Series(f"validation/{metric}", "validation"),
    )


_PLOTS = (
    _Plot(
        "Masked-token loss (nats)",
        (
            *_train_and_validation("mlm_loss"),
            _Series("validation/unigram_loss", "unigram baseline", is_baseline=True),
        ),
        _format_number,
    ),
    _Plot("Masked-token accuracy", _train_and_validation("mlm_accuracy"), _format_percent),
    _Plot("Next-sentence loss (nats)", _train_and_validation("nsp_loss"), _format_number),
    _Plot("Next-sentence accuracy", _train_and_validation("nsp_accuracy"), _format_percent),
    _Plot("Loss (nats)", _train_and_validation("loss"), _format_number),
    _Plot("Accuracy", _train_and_validation("accuracy"), _format_percent),
    _Plot("Learning rate", (_Series("train/learning_rate", "learning rate"),), _format_number),
    _Plot("Tokens per second", (_Series("speed/tokens_per_second", "tokens/s"),), _format_number),
    _Plot("Model FLOPs utilisation", (_Series("speed/mfu", "MFU"),), _format_percent),
    _Plot("Time spent waiting for data", (_Series("speed/data_wait", "share"),), _format_percent),
)
"""The plots that are known by name; each is drawn when the log has any of its series."""


def _choose_plots(metrics: Sequence[Record]) -> tuple[list[_Plot], list[_Plot]]:
    """The known plots that have data, and plots for all remaining scalars.

    The remaining ones share a plot when they differ only in their group: ``train/perplexity`` and
    ``validation/perplexity``.
    """
    names = list(dict.fromkeys(name for record in metrics for name in record if name != "step"))
    known = []
    for plot in _PLOTS:
        present = [series for series in plot.series if series.name in names]
        if present:
            known.append(plot._replace(series=present))
    drawn = {series.name for plot in known for series in plot.series}
    remaining: dict[str, list[_Series]] = {}
    for name in sorted(names):
        if name not in drawn:
            group, _, metric = name.rpartition("/")
            label = {"train": "training"}.get(group, group) or metric
            remaining.setdefault(metric, []).append(_Series(name, label))
    other = [
        _Plot(metric.replace("_", " "), series, _format_number)
        for metric, series in sorted(remaining.items())
    ]
    return known, other


def _draw(plot: _Plot, metrics: Sequence[Record], identifier: str) -> _Figure:
    """Draws a plot as an SVG image whose ids all start with ``identifier``."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=_FONT_POINTS, length=0, pad=5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=_TICK_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_TICK_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _format_number(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plot.format(value)))
    axes.set_xlabel("step", color=_INK, fontsize=_FONT_POINTS)

    legend = []
    has_points = False
    # Validation has the second colour on every plot, whatever else is there.
    strokes = itertools.cycle((_STROKES[0], *_STROKES[2:]))
    for series in plot.series:
        if series.is_baseline:
            stroke = _INK
        else:
            stroke = _STROKES[1] if series.name.startswith("validation/") else next(strokes)
        points = [
            (record["step"], record[series.name]) for record in metrics if series.name in record
        ]
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        drawn = thin_out(finite)
        has_points |= bool(drawn)
        is_sparse = len(drawn) <= (1 if series.is_baseline else _MARKED_POINTS)
        axes.plot(
            [step for step, _ in drawn],
            [value for _, value in drawn],
            color=stroke,
            linewidth=1.5,
            linestyle="--" if series.is_baseline else "-",
            marker="o" if is_sparse else "",
            markersize=3.5,
        )
        not_finite = len(points) - len(finite)
        legend.append(
            _LegendEntry(
                label=series.label + (f" ({not_finite} not finite)" if not_finite else ""),
                colour=_VARIABLES[stroke],
                is_baseline=series.is_baseline,
                first=plot.format(points[0][1]),
                last=plot.format(points[-1][1]),
            )
        )

    # The whole run on every plot, so that one can be read above the other.
    newest_step = max(record["step"] for record in metrics)
    axes.set_xlim(-0.02 * newest_step, max(1, 1.02 * newest_step))
    if not has_points:
        axes.set_yticks([])

    output = io.StringIO()
    # Text stays text: smaller, searchable, and in the page's own typeface. The salt and the missing
    # date make the same run give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": identifier}):
        figure.savefig(output, format="svg", metadata={"Date": None})
    return _Figure(plot.title, _make_inline(output.getvalue(), identifier), legend)


def thin_out(
    points: Sequence[tuple[float, float]], limit: int = MAX_POINTS
) -> Sequence[tuple[float, float]]:
    """Leaves at most ``limit`` points, with the same outline: no spike is lost.

    Args:
      points: (step, value) in the order of the steps, all finite.
      limit: at least 4.

    Returns:
      ``points`` themselves when they are few enough; else the first, the last, and the lowest and
      the highest of each of equally many stretches.
    """
    if len(points) <= limit:
        return points
    stretches = (limit - 2) // 2
    bounds = [len(points) * n // stretches for n in range(stretches + 1)]
    kept = {points[0], points[-1]}
    for begin, end in itertools.pairwise(bounds):
        stretch = points[begin:end]
        kept |= {
            min(stretch, key=lambda point: point[1]),
            max(stretch, key=lambda point: point[1]),
        }
    return sorted(kept)


def _make_inline(svg: str, identifier: str) -> str:
    """Turns Matplotlib's SVG file into an element, of which one page can hold several."""
    element = svg[svg.index("<svg") :]
    # Its style sheet would hold for the whole page, and its size and typeface are the page's to
    # choose.
    element = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r"font-family: [^;\"]*;", "", element)
    element = re.sub(r'((?: id="|"#|url\(#))', rf"\1{identifier}-", element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, variable)
    return element
