"""Verification of a model: its tokens, every stage, what its results promise, the published scores.

    from qwen3np import Embedder
    from qwen3np.verify import verify
    result = verify(Embedder("Qwen/Qwen3-Embedding-0.6B"), against="transformers")
    print(result.report())
    assert result.held

The sections come in the order in which an error spreads, so that the first bad row names its origin.
"""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..embedder import Embedder
from ..errors import CheckpointError
from ..loading.hub import hub_id
from ..reranker import Reranker
from ..runtime.progress import bar
from ..runtime.stages import Answers, Stage, Texts, reference_stages
from ..synth.checkpoints import is_generated
from ..table import table
from .checks import BAD, OK, Check, Subject, encoder_checks
from .compare import Row, compare_stages, stage_table
from .embedding import EmbedderChecks
from .reranking import RerankerChecks
from .transformers import require_transformers, transformers_stages

AGAINST = ("numpy", "transformers")

# How far a stage may be from float64, as a multiple of plain float32's distance. Measured at all 87 stages of
# a generated 0.6B: the float32 kernels 0.7 to 1.5, bfloat16 activations ("medium") 2900 to 6800. Two bfloat16
# parts ("high" where the CPU multiplies bfloat16) round 2^9 times finer than one, which makes 14. Weights
# that are rounded to int8, against those of the file: 5000 to 40000.
STAGE_TOLERANCE = {"float32": 8.0, "high": 64.0, "medium": 20000.0, "low": 100000.0}


@dataclass(frozen=True)
class Verification:
    """What `verify` found, row by row.

    Attributes:
        about: The model, the backend, what it was compared with, and the versions.
        tokens: Token ids against the tokenizers library and the published ids.
        stages: The stages of the forward pass, in forward order.
        properties: What vectors or scores promise, such as the same bits alone and in a batch.
        published: The published scores.
        note: Why published scores were not compared, or "".
    """

    about: dict[str, str]
    tokens: list[Check]
    stages: list[Row]
    properties: list[Check]
    published: list[Check]
    note: str

    @property
    def bad(self) -> list[str]:
        """The names of the rows that fell short, in the report's order."""
        checks = [c.name for c in self.tokens if c.verdict == BAD]
        stages = [row.stage for row in self.stages if not row.ok]
        return checks + stages + [c.name for c in self.properties + self.published if c.verdict == BAD]

    @property
    def held(self) -> bool:
        """Whether no row fell short."""
        return not self.bad

    def report(self, columns: int | None = None) -> str:
        """Return all rows as tables, for a terminal of `columns` columns, and the summary."""
        parts = ["\n".join(f"{name:10}{value}" for name, value in self.about.items())]
        parts += ["Tokens\n" + _checks_table(self.tokens, columns)]
        parts += ["Stages, in forward order\n" + stage_table(self.stages, columns)]
        parts += ["Properties\n" + _checks_table(self.properties, columns)]
        if self.published:
            scores = _checks_table(self.published, columns)
            parts.append(f"Published scores\n{scores}\n{_sources(self.published)}")
        return "\n\n".join([*parts, *([self.note] if self.note else []), self.summary()])

    def summary(self) -> str:
        """Return the verdict in one line."""
        checks = self.tokens + self.properties + self.published
        compared = sum(c.verdict in (OK, BAD) for c in checks) + len(self.stages)
        scores = sum(c.verdict == OK for c in self.published)
        if self.bad:
            return f"FELL SHORT: {len(self.bad)} of {compared} comparisons, the first of them: {self.bad[0]}"
        what = f"{scores} published values among them" if scores else "no published value among them"
        return f"HELD: {compared} comparisons, {what}; {len(checks) + len(self.stages) - compared} not made"

    def as_dict(self) -> dict[str, Any]:
        """Return all rows with all digits, for JSON; NaN and infinity become None."""
        values = {"held": self.held, "bad": self.bad, "summary": self.summary(), **asdict(self)}
        for row, plain in zip(self.stages, values["stages"], strict=True):
            plain["verdict"] = OK if row.ok else BAD
        finite: dict[str, Any] = _finite(values)
        return finite


def verify(
    model: Embedder | Reranker,
    *,
    against: str = "numpy",
    published: bool | None = None,
    show_progress_bar: bool = False,
) -> Verification:
    """Compare a model with the reference or transformers, and with the published scores.

    Everything there is to compare is compared; nothing stops at the first difference.

    Args:
        model: The Embedder or Reranker to verify.
        against: "numpy", the reference, or "transformers" (extra `hf`). Its float64 is the truth of the
            stages, the error of its float32 their unit.
        published: Whether the weights are said to be the published ones of their shape. None: they are if the
            folder is a Hub snapshot of such a model.
        show_progress_bar: Show one stage after the other on the terminal.

    Raises:
        ImportError: `against` is "transformers", and torch or transformers is not installed.
        ValueError: `against` is unknown, or published=True cannot be true: the weights are generated, or no
            values are published for their shape.
    """
    if against not in AGAINST:
        raise ValueError(f"against = {against!r} is not one of {', '.join(AGAINST)}")
    versions = require_transformers() if against == "transformers" else f"NumPy {np.__version__}"
    subject: Subject = RerankerChecks(model) if isinstance(model, Reranker) else EmbedderChecks(model)
    name, note = _published_model(model, subject, published)
    ids = subject.texts()
    kept: dict[str, NDArray[Any]] = {}
    shown = bar(
        total=3 * model.config.num_hidden_layers + 3 + (subject.answers is not None),
        desc="verifying",
        unit="stage",
        leave=False,
        disable=None if show_progress_bar else True,
    )
    with shown, np.errstate(all="ignore"):  # NaN and infinity are what the report is for, not warnings

        def got() -> Iterator[Stage]:
            for stage, x in subject.stages(ids):
                if stage == "pooled":
                    kept[stage] = x
                yield stage, x
                shown.update()

        truth, float32 = _sources_of_stages(model, against, ids, subject.answers)
        stages = compare_stages(truth, got(), STAGE_TOLERANCE[model.backend.arithmetic], float32)
        shown.set_description("properties")
        properties = [
            *encoder_checks(model.backend, ids, kept["pooled"]),
            *_until_refused(subject.property_checks(ids)),
        ]
    return Verification(
        about=_about(model, against, versions, ids),
        tokens=list(subject.token_checks(bool(name) and not note)),
        stages=stages,
        properties=properties,
        published=list(_until_refused(subject.published_checks(name, compared=not note))) if name else [],
        note=note,
    )


def _until_refused(checks: Iterator[Check]) -> Iterator[Check]:
    """Yield the checks up to an error, and that as a failed check.

    A model refuses to return a result that is not finite; the stages say where that begins.
    """
    try:
        yield from checks
    except CheckpointError:
        yield Check("every result is finite", "yes", "no", None, None, BAD)


def _published_model(model: Embedder | Reranker, subject: Subject, claimed: bool | None) -> tuple[str, str]:
    """Return the published model whose values apply, or "", and why they are not compared, or ""."""
    c, folder = model.config, model.checkpoint.folder
    shape = subject.shapes.get((c.hidden_size, c.intermediate_size, c.num_hidden_layers), "")
    name = hub_id(folder) if hub_id(folder) in subject.values else shape
    if claimed and not name:
        raise ValueError(
            f"{folder}: no values are published for a model of this shape (hidden_size {c.hidden_size}, "
            f"intermediate_size {c.intermediate_size}, {c.num_hidden_layers} layers)"
        )
    if claimed and is_generated(model.checkpoint):
        raise ValueError(
            f"{folder}: the weights are generated (qwen3np synth), so the published scores cannot be expected"
        )
    if not name:
        return "", "Published scores: none for a model of this shape."
    if is_generated(model.checkpoint):
        return name, f"The weights are generated (qwen3np synth); the scores above are those of {name}."
    if claimed or (claimed is None and hub_id(folder) == name):
        return name, ""
    return name, f"If the weights are those of {name}, published=True (--published) compares the scores."


def _sources_of_stages(
    model: Embedder | Reranker, against: str, ids: Texts, answers: Answers
) -> tuple[Iterator[Stage], Iterator[Stage]]:
    """Return the stages in float64, the truth, and in plain float32."""
    checkpoint = model.checkpoint
    if against == "transformers":
        return (
            transformers_stages(ids, checkpoint, "float64", answers),
            transformers_stages(ids, checkpoint, "float32", answers),
        )
    return (
        reference_stages(ids, checkpoint.weights(np.float64), answers=answers),
        reference_stages(ids, checkpoint.weights(np.float32), answers=answers),
    )


def _about(model: Embedder | Reranker, against: str, versions: str, ids: list[list[int]]) -> dict[str, str]:
    c = model.config
    generated = ", generated weights" if is_generated(model.checkpoint) else ""
    return {
        "model": str(model.checkpoint.folder),
        "": f"{c.num_hidden_layers} layers, hidden_size {c.hidden_size}, "
        f"{model.checkpoint.num_parameters:,} parameters{generated}",
        "backend": f"{model.backend!r}, qwen3np {__version__}, {platform.machine()}",
        "against": ("transformers" if against == "transformers" else "the reference")
        + f" in float64 ({versions})",
        "texts": f"{len(ids)}, of {', '.join(str(len(i)) for i in ids)} tokens",
    }


def _checks_table(checks: Sequence[Check], columns: int | None) -> str:
    sources = list(dict.fromkeys(c.source for c in checks if c.source))
    header = ["check", "expected", "got", "difference", "tolerance", "verdict"]
    rows = [
        [
            c.name + (f" [{sources.index(c.source) + 1}]" if c.source else ""),
            *(f"{x:.6f}" if isinstance(x, float) else x for x in (c.expected, c.got)),
            "" if c.difference is None else f"{c.difference:.2g}",
            "" if c.tolerance is None else f"{c.tolerance:.2g}",
            c.verdict,
        ]
        for c in checks
    ]
    return table(header, rows, columns)


def _sources(checks: Sequence[Check]) -> str:
    lines = [f"[{i}] {source}" for i, source in enumerate(dict.fromkeys(c.source for c in checks), 1)]
    return "\n".join(textwrap.fill(x, 100, subsequent_indent="    ", break_long_words=False) for x in lines)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
