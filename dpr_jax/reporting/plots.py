"""Draws the curves and bars of a report as inline SVG.

Text stays text, and colours are those of the page: the figures are drawn in
placeholder colours, which become `currentColor` and CSS variables.  Series also
differ in line style and marker, so that they can be told apart without colour.
"""

import dataclasses
import io
import math
import re
import warnings
import zlib
from collections.abc import Sequence

from dpr_jax.reporting.html import clean, text

Numbers = Sequence[float | int]
_INK, _FAINT = "#0a0b0c", "#0a0b0d"
_SERIES = tuple(f"#0a0b1{number}" for number in range(6))
_COLOURS = {_INK: "currentColor", _FAINT: "var(--line)"} | {
  colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)
}
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_SIZE = (4.2, 2.75)  # inches; 72 units each in the drawing
_FONT = 8.5  # points
_FEW = 40  # points of a series; with more, not each has a marker
_BARS = 20
_RC = {
  "svg.fonttype": "none",
  "svg.hashsalt": "dpr-jax",
  "font.size": _FONT,
  "axes.edgecolor": _INK,
  "axes.labelcolor": _INK,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.linewidth": 0.6,
  "axes.unicode_minus": True,
  "text.color": _INK,
  "text.parse_math": False,
  "xtick.color": _INK,
  "ytick.color": _INK,
  "grid.color": _FAINT,
  "grid.linewidth": 0.5,
  "hatch.linewidth": 0.4,
}


@dataclasses.dataclass(frozen=True)
class Series:
  """One curve.

  Attributes:
    label: name in the legend.
    x: places on the x axis.
    y: values, one for each.
    low: lower ends of the band; () = no band.
    high: upper ends of the band.
    style: number of its colour, line and marker, so that one method looks the
      same in all figures; None = its place among the series.
    points: whether only markers are drawn.
  """

  label: str
  x: Numbers
  y: Numbers
  low: Numbers = ()
  high: Numbers = ()
  style: int | None = None
  points: bool = False


def curves(
  title: str,
  series: Sequence[Series],
  *,
  x: str,
  y: str,
  log_x: bool = False,
  most: float | int | None = None,
) -> str:
  """A figure with curves.

  Args:
    title: what is shown; the caption.
    series: the curves.
    x: label of the x axis, with its unit.
    y: label of the y axis, with its unit.
    log_x: whether the x axis is logarithmic, with plain numbers.
    most: largest possible value, where the y axis ends at the latest.
  """
  figure, axes = _figure(x, y)
  for place, each in enumerate(series):
    number = place if each.style is None else each.style
    colour = _SERIES[number % len(_SERIES)]
    axes.plot(
      each.x,
      each.y,
      linestyle="" if each.points else _STYLES[number % len(_STYLES)],
      marker=_MARKERS[number % len(_MARKERS)],
      markevery=max(1, len(each.x) // 8) if len(each.x) > _FEW else 1,
      markersize=5 if each.points else 3,
      linewidth=1.3,
      color=colour,
      label=_plain(each.label),
    )
    if each.low:
      axes.fill_between(
        each.x, each.low, each.high, color=colour, alpha=0.15, linewidth=0
      )
  if log_x:
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
  elif all(isinstance(at, int) for each in series for at in each.x):
    axes.locator_params(axis="x", integer=True)
  if most is not None and axes.get_ylim()[1] > most:
    axes.set_ylim(top=most + 0.01 * (most - axes.get_ylim()[0]))
  if len(series) > 1:
    axes.legend(fontsize=_FONT - 0.5, handlelength=3, frameon=False)
  return _svg(figure, title)


def bars(title: str, groups: Sequence[Series], *, x: str, y: str) -> str:
  """A figure with a histogram per group, side by side.

  Args:
    title: the caption.
    groups: `x` = lower ends of equally wide bins, `y` = heights.
    x: label of the x axis.
    y: label of the y axis.
  """
  figure, axes = _figure(x, y)
  hatches = ("", "////", "....", "xxxx", "\\\\\\\\", "----")
  for place, each in enumerate(groups):
    number = place if each.style is None else each.style
    step = each.x[1] - each.x[0] if len(each.x) > 1 else 1.0
    width = 0.9 * step / len(groups)
    axes.bar(
      [left + 0.05 * step + place * width for left in each.x],
      each.y,
      width,
      align="edge",
      facecolor=_SERIES[number % len(_SERIES)],
      edgecolor=_INK,
      linewidth=0.4,
      hatch=hatches[place % len(hatches)],
      label=_plain(each.label),
    )
  if len(groups) > 1:
    axes.legend(fontsize=_FONT - 0.5, frameon=False)
  return _svg(figure, title)


def histogram(
  values: Numbers, low: float | int, high: float | int
) -> tuple[Numbers, Numbers]:
  """Lower ends of equally wide bins, and the share of the values in each.

  Args:
    values: the values; whole numbers get bins of a whole number of them.
    low: lower end of the first bin.
    high: least upper end of the last bin.
  """
  import numpy as np

  width = (high - low) / _BARS
  if isinstance(low, int):
    width = max(1, -(-(high - low) // _BARS))
  edges = low + width * np.arange(math.ceil((high - low) / width - 1e-9) + 1)
  counts, _ = np.histogram(values, bins=edges)
  return edges[:-1].tolist(), (counts / max(1, len(values))).tolist()


def _figure(x: str, y: str):
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_RC):
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
  return figure, axes


def _plain_numbers(axis) -> None:
  from matplotlib import ticker

  axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
  axis.set_major_formatter(ticker.FuncFormatter(lambda at, _: f"{at:,g}"))
  axis.set_minor_locator(ticker.NullLocator())


def _plain(label: str) -> str:
  """A legend's text; one with "_" in front would be left out of it."""
  return clean(label).lstrip("_") or "?"


def _svg(figure, title: str) -> str:
  """The figure element: the drawing without sizes, colours of the page."""
  import matplotlib

  file = io.StringIO()
  with matplotlib.rc_context(_RC), warnings.catch_warnings():
    # Letters that its own font lacks: the browser's has them.
    warnings.filterwarnings("ignore", "Glyph .* missing")
    figure.savefig(
      file, format="svg", transparent=True, metadata={"Date": None}
    )
  drawing = file.getvalue()
  drawing = drawing[drawing.index("<svg") :]
  drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
  # Its rule would be for the whole page.
  drawing = re.sub(
    r"\s*<style type=\"text/css\">.*?</style>", "", drawing, flags=re.DOTALL
  )
  drawing = re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL)
  # Ids are unique on the page.
  prefix = f"f{zlib.crc32((title + drawing).encode('utf-8', 'replace')):08x}-"
  drawing = re.sub(r'\bid="', f'id="{prefix}', drawing)
  drawing = re.sub(r'href="#', f'href="#{prefix}', drawing)
  drawing = drawing.replace("url(#", f"url(#{prefix}")
  for colour, name in _COLOURS.items():
    drawing = drawing.replace(colour, name)
  drawing = re.sub(r"font-family: [^;]*; ?", "", drawing)
  drawing = re.sub(
    r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
    rf'<svg \1 role="img" aria-label="{text(title)}">',
    drawing,
    count=1,
  )
  return (
    f"<figure>{drawing.strip()}<figcaption>{text(title)}</figcaption></figure>"
  )
