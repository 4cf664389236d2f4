"""The picture of the architecture, docs/architecture.svg: every box with its function and its file.

python benchmarks/readme.py draws it, and fails if a function that a box names is not in its file.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/architecture.svg"
EDGE, INK = "#7d8590", "#1f2328"  # of lines, readable on GitHub's light and dark pages; of words in a box
BLUE, GREEN, SAND = "#cfe4ff", "#d3efd6", "#f5e6c8"
LEFT, WIDTH, KERNELS, KERNEL_WIDTH, GAP, INSET = 24, 410, 480, 356, 22, 26


class Box(NamedTuple):
    title: str
    where: str  # "file: function, function"; a method is Class.name
    color: str = BLUE
    kernels: str = ""  # the same, of what runs it in the engine
    lines: int = 1  # of the title
    inside: bool = False  # of the frame "28 x"


ENGINE = "qwen3np/engine.py"
BOXES = [
    Box("text", "", SAND),
    Box(
        "token ids: byte-level BPE, <|endoftext|> at the end",
        "qwen3np/loading/tokenizer.py: EmbeddingTokenizer.encode",
    ),
    Box("texts side by side, in panels of 16 tokens", "qwen3np/runtime/packed_batch.py: pack_batch"),
    Box("x = rows of embed_tokens", f"{ENGINE}: embed"),
    Box(
        "x += attention(rms_norm(x))\nq, k, v; head norm of q and k; RoPE; causal; o_proj",
        f"{ENGINE}: keys_values, attention", GREEN,
        "kernels/matmul.py: matmul, matmul_add\nkernels/norm_rope.py: rms_norm, norm_rope_queries\n"
        "kernels/kv_layout.py: store_keys_values\nkernels/attention.py: attention",
        2, True,
    ),
    Box(
        "x += mlp(rms_norm(x))\ndown_proj(silu(gate) * up)", f"{ENGINE}: mlp", GREEN,
        "kernels/matmul.py: matmul_swiglu, matmul_add\nkernels/norm_rope.py: rms_norm", 2, True,
    ),
    Box("the last token's state, final rms_norm", f"{ENGINE}: pool", BLUE, "kernels/norm_rope.py: rms_norm"),
    Box("first dimensions, if truncated; length 1", "qwen3np/reference.py: normalize"),
    Box("vector", "", SAND),
]  # fmt: skip


def functions(file: Path) -> set[str]:
    """Names of its functions, and Class.name of its methods."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return names


def check(where: str) -> None:
    for line in filter(None, where.split("\n")):
        file, names = line.split(": ")
        for name in names.split(", "):
            if name not in functions(ROOT / file):
                raise SystemExit(f"{__file__}: there is no {name} in {file}")


def text(x: float, y: float, words: str, size: int = 13, extra: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" {extra}>{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, color: str, extra: str = "") -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{color}" '
        f'stroke="{EDGE}" {extra}/>'
    )


def draw() -> str:
    """The whole file."""
    mono, bold = 'font-family="ui-monospace, Menlo, Consolas, monospace"', 'font-weight="bold"'
    parts, y, frame = [], 10.0, [0.0, 0.0]
    for i, box in enumerate(BOXES):
        check(box.where)
        check(box.kernels)
        kernels = box.kernels.split("\n") if box.kernels else []
        height = max(14 + 18 * box.lines + 18 * bool(box.where), 14 + 18 * len(kernels))
        if box.inside and not BOXES[i - 1].inside:
            y += INSET
            frame[0] = y - INSET
        middle = LEFT + WIDTH / 2
        if i:
            start = y - GAP - (box.inside != BOXES[i - 1].inside) * (INSET if box.inside else 12)
            parts.append(
                f'<path d="M{middle:g} {start:g} V{y - 3:g}" stroke="{EDGE}" stroke-width="2" '
                'marker-end="url(#tip)" fill="none"/>'
            )
        parts.append(rectangle(LEFT, y, WIDTH, height, box.color))
        top = y + (height - 18 * (box.lines + bool(box.where))) / 2 + 13
        for j, words in enumerate(box.title.split("\n")):
            parts.append(text(LEFT + 14, top + 18 * j, words, 13, "" if j else bold))
        if box.where:
            parts.append(text(LEFT + 14, top + 18 * box.lines, box.where, 11, mono))
        if kernels:
            parts.append(rectangle(KERNELS, y, KERNEL_WIDTH, height, "#eceff3"))
            parts.append(
                f'<path d="M{LEFT + WIDTH} {y + height / 2:g} H{KERNELS}" stroke="{EDGE}" stroke-width="2" '
                'stroke-dasharray="4 4"/>'
            )
            top = y + (height - 18 * len(kernels)) / 2 + 13
            parts += [text(KERNELS + 12, top + 18 * j, line, 11, mono) for j, line in enumerate(kernels)]
        y += height + GAP
        if box.inside and not BOXES[i + 1].inside:
            frame[1] = y - GAP + 12
            y += 12
    x, right = LEFT - 14, KERNELS + KERNEL_WIDTH + 14
    parts.insert(0, rectangle(x, frame[0], right - x, frame[1] - frame[0], "none", 'stroke-dasharray="7 5"'))
    label = f'fill="{EDGE}" {bold}'
    parts.append(text(KERNELS, frame[0] + 18, "28 times in the 0.6B: block, a layer", 12, label))
    height = y - GAP + 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 10:g} {height:g}" '
        f'width="{right + 10:g}" height="{height:g}" font-family="-apple-system, Segoe UI, Helvetica, Arial, '
        f'sans-serif" fill="{INK}">\n<title>From a text to a vector: each stage with its function and file'
        '</title>\n<defs><marker id="tip" viewBox="0 0 10 10" refX="7" refY="5" markerWidth="6" '
        f'markerHeight="6" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{EDGE}"/></marker></defs>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"
