"""The pictures, as SVG: of the page, whose style sheet colours them, and of docs/architecture.md.

A picture carries its title and its description, for who does not see it; a hovered place tells its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from .numbers import Explanation, Reading

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 38, 46  # room around the plot

# For a picture in a file of its own: colours that are readable on GitHub's light and dark pages.
STYLE = """<style>
text { font: 12px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #7d8590 }
.grid { stroke: #7d859055 } .crowd { fill: none; stroke: #7d8590; opacity: .45 } .cell { fill: #2f81f7 }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round } .hit { fill: transparent }
.blue { stroke: #2f81f7 } .green { stroke: #2da44e } .sand { stroke: #bf8700; stroke-dasharray: 5 4 }
.mark { fill: none; stroke: #bf8700; stroke-width: 2 }
</style>"""


class Line(NamedTuple):
    """A line of a chart.

    `values` may begin late: they are those of the last places. `style` is "blue", "green" or "sand".
    """

    name: str
    values: Sequence[float]
    style: str


def after(num_layers: int) -> list[str]:
    """Return the places along the residual stream: the embeddings, and behind each layer."""
    return ["emb", *map(str, range(num_layers))]


def size_picture(reading: Reading) -> str:
    """Draw the length of every token's state through the layers, with the massive channel."""
    layer, token, channel = reading.massive
    places = after(len(reading.sizes) - 1)
    peak = reading.peaks[layer, channel]
    lines = [
        Line("pooled token", reading.sizes[:, -1].tolist(), "blue"),
        Line(f"channel {channel}", reading.peaks[:, channel].tolist(), "sand"),
    ]
    about = (
        f"The largest value is {peak:,.4g}, in channel {channel} of token {token} "
        f"{shown(reading.tokens[token])!r} after {_place(places[layer])}: {reading.share:.1%} of the squared "
        f"length of that token's state. The pooled token's state is {reading.sizes[0, -1]:.3g} long as an "
        f"embedding and {reading.sizes[-1, -1]:.4g} after the last layer."
    )
    crowd = [("the other tokens", column.tolist()) for column in reading.sizes[:, :-1].T]
    return chart(
        "Length of the residual stream", about, places, "after layer", lines, crowd, True, (layer, peak)
    )


def nearness_picture(explanation: Explanation) -> str:
    """Draw how near each layer's pooled state is to the final vector."""
    styles = ("blue", "green")
    lines = [
        Line(name, reading.nearness.tolist(), style)
        for reading, name, style in zip(explanation.texts, names(explanation), styles, strict=False)
    ]
    places = after(explanation.num_layers)
    about = "; ".join(
        f"{line.name}: {line.values[0]:.3f} as an embedding, above 0.5 from "
        f"{_place(places[_first_above(line.values, 0.5)])} on, above 0.9 from "
        f"{_place(places[_first_above(line.values, 0.9)])} on"
        for line in lines
    )
    return chart("Cosine with the final vector", about + ".", places, "after layer", lines)


def layers_picture(explanation: Explanation) -> str:
    """Draw the similarity of the two texts, layer by layer."""
    values = explanation.by_layer.tolist()
    same = explanation.texts[0].ids[-1] == explanation.texts[1].ids[-1]
    why = ", where both end in the same token" if same else ""
    about = f"{values[0]:.4f} as embeddings{why}; {values[-1]:.4f} in the end."
    lines = [Line("similarity", values, "blue")]
    places = after(explanation.num_layers)
    return chart("Similarity of the two texts by layer", about, places, "after layer", lines)


def dims_picture(explanation: Explanation) -> str:
    """Draw the similarity of the two texts in their first dimensions."""
    values, dims = explanation.by_dims.tolist(), explanation.dims
    about = f"{values[0]:.4f} in {dims[0]} dimensions, {values[-1]:.4f} in all {dims[-1]}."
    lines = [Line("similarity", values, "blue")]
    return chart(
        "Similarity of the two texts by number of dimensions",
        about,
        list(map(str, dims)),
        "leading dimensions",
        lines,
    )


def names(explanation: Explanation) -> list[str]:
    """Return what the texts are called in a legend."""
    return ["pooled token"] if len(explanation.texts) == 1 else ["first text", "second text"]


def shown(token: str) -> str:
    """Return a token with its white space visible."""
    return token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")


def chart(
    title: str,
    about: str,
    places: list[str],
    x_title: str,
    lines: Sequence[Line],
    crowd: Sequence[tuple[str, list[float]]] = (),
    log: bool = False,
    mark: tuple[int, float] | None = None,
) -> str:
    """Draw lines over evenly spaced places.

    Args:
        title: What is measured.
        about: What there is to see, in words.
        places: Their names.
        x_title: What they are.
        lines: One value per place.
        crowd: More lines, drawn thin; those of one name are one entry of the legend.
        log: A logarithmic axis.
        mark: A place and a value to draw a ring around.
    """
    everything = [v for line in lines for v in line.values] + [v for _, values in crowd for v in values]
    ticks = _powers(everything) if log else _steps(everything)
    low, high = (math.log10(ticks[0]), math.log10(ticks[-1])) if log else (ticks[0], ticks[-1])

    def x(place: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (place / max(len(places) - 1, 1))

    def y(value: float) -> float:
        at = math.log10(max(value, 10**low)) if log else value
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (at - low) / (high - low)

    def path(values: Sequence[float]) -> str:
        points = [f"{x(i):.1f} {y(v):.1f}" for i, v in enumerate(values)]
        return "M" + "L".join(points) + ("" if len(points) > 1 else "h4")

    parts = [
        f'<path class="grid" d="M{LEFT} {y(t):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{_number(t)}</text>'
        for t in ticks
    ]
    every = -(-len(places) // 15)
    for i in range(len(places) - 1, -1, -every):
        middle = f'x="{x(i):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle"'
        parts.append(f"<text {middle}>{escape(places[i])}</text>")
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{x_title}</text>'
    )
    parts += [f'<path class="crowd" d="{path(values)}"/>' for _, values in crowd]
    parts += [f'<path class="line {line.style}" d="{path(line.values)}"/>' for line in lines]
    if mark:
        parts.append(f'<circle class="mark" cx="{x(mark[0]):.1f}" cy="{y(mark[1]):.1f}" r="6"/>')
    entries = [(line.name, f"line {line.style}") for line in lines]
    entries += [(name, "crowd") for name in dict.fromkeys(name for name, _ in crowd)]
    at = LEFT
    for name, style in entries if len(entries) > 1 else []:
        parts.append(f'<path class="{style}" d="M{at} 14h22"/><text x="{at + 28}" y="18">{name}</text>')
        at += 52 + 6 * len(name)
    wide = (WIDTH - LEFT - RIGHT) / max(len(places) - 1, 1)
    for i, place in enumerate(places):
        values = "".join(f"\n{line.name}: {_number(line.values[i], 4)}" for line in lines)
        parts.append(
            f'<rect class="hit" x="{x(i) - wide / 2:.1f}" y="{TOP}" width="{wide:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{x_title} {escape(place)}{values}</title></rect>'
        )
    return _svg(title, about, WIDTH, HEIGHT, parts)


def attention_picture(reading: Reading, layer: int) -> str:
    """Draw what the pooled token reads in a layer: a row per head, a column per token."""
    heads = reading.probabilities[layer][:, -1]
    N, T = heads.shape
    cell = min(26.0, (WIDTH - LEFT - RIGHT) / T)
    tall, most = max(7.0, min(18.0, 240 / N)), max(len(shown(t)) for t in reading.tokens)
    top = 16 + min(6.6 * most, 90)
    parts = []
    for s, token in enumerate(reading.tokens):
        at = LEFT + (s + 0.5) * cell
        label = shown(token) if len(token) <= 14 else shown(token)[:13] + "…"
        if cell >= 11:
            turned = f'transform="translate({at + 4:.1f} {top - 6:.1f}) rotate(-65)"'
            parts.append(f"<text {turned}>{escape(label)}</text>")
        for n in range(N):
            p = float(heads[n, s])
            told = f"head {n} reads {p:.1%} of token {s} {escape(shown(token))}"
            parts.append(
                f'<rect class="cell" x="{LEFT + s * cell:.1f}" y="{top + n * tall:.1f}" '
                f'width="{cell - 1:.1f}" height="{tall - 1:.1f}" opacity="{max(p, 0) ** 0.5:.3f}">'
                f"<title>{told}</title></rect>"
            )
    for n in range(0, N, -(-N // int(240 // 14))):
        parts.append(
            f'<text x="{LEFT - 8}" y="{top + n * tall + tall / 2 + 4:.1f}" text-anchor="end">{n}</text>'
        )
    mean = heads.mean(axis=0)
    best = ", ".join(f"{shown(reading.tokens[s])!r} {mean[s]:.0%}" for s in np.argsort(-mean)[:3])
    about = f"A row per head, a column per token; on the mean of the heads most is read of {best}."
    height = math.ceil(top + N * tall + 8)
    return _svg(f"What the pooled token reads in layer {layer}", about, WIDTH, height, parts)


def standalone(svg: str) -> str:
    """Return a picture as a file of its own."""
    head, _, rest = svg.partition("</desc>")
    return f"{head}</desc>\n{STYLE}{rest}\n"


def _svg(title: str, about: str, width: int, height: int, parts: list[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img"><title>{escape(title)}</title><desc>{escape(about)}</desc>',
            *parts,
            "</svg>",
        ]
    )


def _powers(values: list[float]) -> list[float]:
    """Return the ticks of a logarithmic axis: powers of ten, with 2 and 5 between where those are few."""
    positive = [v for v in values if v > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.floor(math.log10(max(positive))) + 1
    steps = (1,) if high - low > 3 else (1, 2, 5)
    ticks = [m * 10.0**e for e in range(low, high + 1) for m in steps]
    first = max(i for i, t in enumerate(ticks) if t <= min(positive))
    last = min((i for i, t in enumerate(ticks) if t >= max(positive)), default=len(ticks) - 1)
    return ticks[first : max(last, first + 1) + 1]


def _steps(values: list[float]) -> list[float]:
    """Return the ticks of a linear axis of cosines: tenths or fifths, or finer where little changes."""
    low, high = min(values), max(values)
    step = next(s for s in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if high - low <= 7 * s)
    first, last = math.floor(low / step + 1e-3), math.ceil(high / step - 1e-3)
    return [round(i * step, 3) for i in range(first, max(last, first + 1) + 1)]


def _number(value: float, digits: int = 3) -> str:
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _first_above(values: Sequence[float], bound: float) -> int:
    """Return the place from which on the values stay above a bound."""
    below = [i for i, v in enumerate(values) if v <= bound]
    return min(below[-1] + 1 if below else 0, len(values) - 1)


def _place(name: str) -> str:
    return "the embeddings" if name == "emb" else f"layer {name}"
