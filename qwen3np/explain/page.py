"""The page: one HTML file that needs nothing from elsewhere, with every picture beside its code."""

from __future__ import annotations

import base64
import inspect
import io
import json
import keyword
import re
import token as tokens
import tokenize
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__, reference
from . import pictures
from .numbers import Explanation, Reading

STEPS = 65535  # of a probability on the page, which is stored as a uint16
CODE: dict[str, list[Callable[..., Any]]] = {
    "tokens": [reference.embed],
    "sizes": [reference.block, reference.rms_norm],
    "attention": [reference.attention, reference.softmax],
    "nearness": [reference.forward, reference.pool, reference.normalize],
    "pair": [reference.normalize],
}
GENERATED = (
    '<p class="warning">The weights are generated, random ones: the arithmetic is real, what it finds means '
    "nothing.</p>"
)


def page(explanation: Explanation) -> str:
    """Return the page as HTML."""
    texts, names = explanation.texts, _names(explanation)
    about = (
        f"{explanation.model}: {explanation.shape}. Computed by {explanation.backend}, qwen3np {__version__}."
    )
    values = {
        "title": escape(texts[0].text[:80]),
        "texts": "".join(map(_text, texts, names)),
        "generated": GENERATED if explanation.generated else "",
        "similarity": _similarity(explanation) if len(texts) == 2 else "",
        "about": escape(about),
        "strips": "".join(map(_tokens, texts, names)),
        "sizes": "".join(map(_sizes, texts, names)),
        "size numbers": _numbers(explanation, _size_columns(explanation)),
        "layers shown": _layers_shown(explanation),
        "nearness": _figure(pictures.nearness_picture(explanation)),
        "nearness numbers": _numbers(explanation, _nearness_columns(explanation)),
        "pair": _pair(explanation) if len(texts) == 2 else "",
        "data": _data(explanation),
    }
    for picture, functions in CODE.items():
        values[f"code {picture}"] = "".join(map(code, functions))
    return _filled("page.html", values)


def code(function: Callable[..., Any]) -> str:
    """Return a function's source, as it is in its file, with line numbers and colours."""
    lines, first = inspect.getsourcelines(function)
    name = f"{function.__module__.replace('.', '/')}.py"
    where = f"{name}, lines {first} to {first + len(lines) - 1}"
    return (
        f'<figure class="code"><figcaption>{where}</figcaption>'
        f'<pre tabindex="0" role="region" aria-label="{where}"><code>{_highlighted("".join(lines))}'
        "</code></pre></figure>"
    )


def _highlighted(source: str) -> str:
    """Return Python source as HTML, its comments, strings, keywords and definitions marked."""
    at = [0]
    for line in source.splitlines(keepends=True):
        at.append(at[-1] + len(line))
    parts, done, before = [], 0, ""
    for found in tokenize.generate_tokens(io.StringIO(source).readline):
        begin, end = (at[line - 1] + column for line, column in (found.start, found.end))
        kind = {tokens.COMMENT: "comment", tokens.STRING: "string", tokens.NUMBER: "number"}.get(
            found.type, ""
        )
        if found.type == tokens.NAME:
            kind = "keyword" if keyword.iskeyword(found.string) else "name" if before == "def" else ""
        if kind:
            parts.append(f'{escape(source[done:begin])}<i class="{kind}">{escape(source[begin:end])}</i>')
            done = end
        before = found.string
    return "".join(parts) + escape(source[done:])


def _filled(template: str, values: dict[str, str]) -> str:
    """Return a file of this package with its {{names}} replaced."""
    text = files(__package__).joinpath(template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(.+?)\}\}", lambda match: values[match[1]], text)


def _names(explanation: Explanation) -> list[str]:
    """Return the texts' names in headings: none where there is one text."""
    return ["First text", "Second text"] if len(explanation.texts) == 2 else [""]


def _text(reading: Reading, name: str) -> str:
    return f"<blockquote>{f'<span>{name}</span>' if name else ''}{escape(reading.text)}</blockquote>"


def _similarity(explanation: Explanation) -> str:
    cosine = f"{explanation.by_layer[-1]:.4f}"
    return f' The similarity of the two texts is <b id="similarity">{cosine}</b>.'


def _tokens(reading: Reading, name: str) -> str:
    """Return the tokens with their ids, as a list."""
    items = [
        f"<li><b>{escape(pictures.shown(token)) or '&nbsp;'}</b><small>{id}</small></li>"
        for token, id in zip(reading.tokens, reading.ids, strict=True)
    ]
    items[-1] = items[-1].replace("<li>", '<li class="pooled">', 1)
    heading = f"<h3>{name}: {len(items)} tokens</h3>" if name else ""
    label = 'class="ids" start="0" tabindex="0" aria-label="Tokens and their ids"'
    return f"{heading}<ol {label}>{''.join(items)}</ol>"


def _sizes(reading: Reading, name: str) -> str:
    heading = f"<h3>{name}</h3>" if name else ""
    return heading + _figure(pictures.size_picture(reading))


def _figure(svg: str) -> str:
    """Return a picture with its title and its description below it."""
    title, about = re.search(r"<title>(.*?)</title><desc>(.*?)</desc>", svg, re.S).groups()  # type: ignore[union-attr]
    return f"<figure>{svg}<figcaption><b>{title}.</b> {about}</figcaption></figure>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that is folded until it is asked for."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for first, *cells in rows
    )
    return (
        '<details><summary>The numbers</summary><div class="wide" tabindex="0" role="region" '
        f'aria-label="The numbers"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</details>"
    )


def _numbers(explanation: Explanation, columns: dict[str, Sequence[float]]) -> str:
    """Return a table of columns along the layers."""
    places = pictures.after(explanation.num_layers)
    rows = [[place, *(f"{c[i]:.6g}" for c in columns.values())] for i, place in enumerate(places)]
    return _table(["after layer", *columns], rows)


def _size_columns(explanation: Explanation) -> dict[str, Sequence[float]]:
    columns: dict[str, Sequence[float]] = {}
    for reading, name in zip(explanation.texts, _names(explanation), strict=True):
        of, channel = f"{name}: " if name else "", reading.massive[2]
        columns[f"{of}pooled token"] = reading.sizes[:, -1].tolist()
        columns[f"{of}longest of all tokens"] = reading.sizes.max(axis=1).tolist()
        columns[f"{of}channel {channel}, largest of all tokens"] = reading.peaks[:, channel].tolist()
    return columns


def _nearness_columns(explanation: Explanation) -> dict[str, Sequence[float]]:
    texts, names = explanation.texts, pictures.names(explanation)
    columns = {name: reading.nearness.tolist() for reading, name in zip(texts, names, strict=True)}
    if len(texts) == 2:
        columns["similarity of the two"] = explanation.by_layer.tolist()
    return columns


def _layers_shown(explanation: Explanation) -> str:
    shown, number = explanation.layers, explanation.num_layers
    if len(shown) == number:
        return ""
    listed = ", ".join(map(str, shown))
    return f" Of {number} layers {listed} {'are' if len(shown) > 1 else 'is'} here; --layers chooses others."


def _pair(explanation: Explanation) -> str:
    """Return the section on two texts."""
    rows = [[str(d), f"{s:.6g}"] for d, s in zip(explanation.dims, explanation.by_dims, strict=True)]
    values = {
        "layers": _figure(pictures.layers_picture(explanation)),
        "dims": _figure(pictures.dims_picture(explanation)),
        "numbers": _table(["dimensions", "similarity"], rows),
        "code": "".join(map(code, CODE["pair"])),
    }
    return _filled("pair.html", values)


def _data(explanation: Explanation) -> str:
    """Return what the script draws attention from, as JSON that can stand inside a script element."""
    data = {
        "layers": explanation.layers,
        "steps": STEPS,
        "names": pictures.names(explanation),
        "texts": [
            {
                "tokens": [pictures.shown(token) for token in reading.tokens],
                "heads": next(iter(reading.probabilities.values())).shape[0],
                "probabilities": [_packed(reading.probabilities[i]) for i in explanation.layers],
            }
            for reading in explanation.texts
        ],
    }
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _packed(probabilities: NDArray[np.float32]) -> str:
    """Return [N, T, T] as base64 of uint16, little-endian: of each head each row up to the token itself."""
    lower = np.tril_indices(probabilities.shape[1])
    steps = np.rint(np.clip(probabilities[:, lower[0], lower[1]], 0, 1) * STEPS)
    return base64.b64encode(steps.astype("<u2").tobytes()).decode()
