"""What the pictures show, from the stages of the model's own backend (runtime/stages.py).

    from qwen3np import Embedder
    from qwen3np.explain import explain
    explanation = explain(Embedder("Qwen/Qwen3-Embedding-0.6B"), "What is gravity?", "It is a force.")
    explanation.texts[0].probabilities[27]  # [query heads, tokens, tokens]

Of a stage is kept what a picture needs: a number per token, the pooled token's state, and the attention of
the chosen layers. That bounds the memory, whatever the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..embedder import Embedder
from ..runtime.soundness import check_states
from ..synth.checkpoints import is_generated

Floats = NDArray[np.float32]

# Probabilities on a page, each 2 bytes as base64: 1.2 MB. A head of T tokens has T * (T + 1) / 2.
MOST_PROBABILITIES = 450_000
MOST_TOKENS = 512  # of a text, however few heads there are
SMALLEST_DIM = 32  # the first that an embedding may be truncated to


@dataclass(frozen=True)
class Reading:
    """One text, read by the model.

    Layers are counted as the residual stream passes them: [0] are the embeddings, [i + 1] is what layer i
    leaves. L is the number of layers.

    Attributes:
        text: The text, its prompt in front.
        ids: Its token ids, the appended one included.
        tokens: What each of them stands for.
        sizes: The length of each token's state, [L + 1, T].
        peaks: The largest absolute value of each channel over all tokens, [L + 1, D].
        massive: Where the largest of all values is: its layer as above, its token, its channel.
        share: The part of that token's squared length that this one channel has.
        vectors: The unit vector that the text would have if a layer were the last, [L + 1, D].
        vector: The unit vector that it has, [D].
        probabilities: Layer -> how much each token reads of each, [query heads, T, T].
    """

    text: str
    ids: list[int]
    tokens: list[str]
    sizes: Floats
    peaks: Floats
    massive: tuple[int, int, int]
    share: float
    vectors: Floats
    vector: Floats
    probabilities: dict[int, Floats]

    @property
    def nearness(self) -> Floats:
        """The cosine of each layer's vector with the text's own, [L + 1]."""
        return np.asarray(self.vectors @ self.vector)


@dataclass(frozen=True)
class Explanation:
    """One text, or two that are compared.

    Attributes:
        model: The model's folder.
        backend: What computed.
        shape: The model's size in words.
        generated: Whether the weights are random ones (`qwen3np synth`), so that nothing means anything.
        texts: One reading or two.
        layers: The layers whose attention is shown.
        num_layers: How many there are.
    """

    model: str
    backend: str
    shape: str
    generated: bool
    texts: list[Reading]
    layers: list[int]
    num_layers: int

    @property
    def by_layer(self) -> Floats:
        """The similarity of the two texts if a layer were the last, [L + 1]."""
        first, second = self.texts
        return np.einsum("ld,ld->l", first.vectors, second.vectors)

    @property
    def dims(self) -> list[int]:
        """Numbers of dimensions from 32 to all of them, evenly spread on a logarithmic axis."""
        hidden = self.texts[0].vector.size
        first = min(SMALLEST_DIM, hidden)
        return sorted({int(round(d)) for d in np.geomspace(first, hidden, 64)})

    @property
    def by_dims(self) -> Floats:
        """The similarity of the two texts in the first `dims` dimensions."""
        cut = [[reference.normalize(t.vector, dim) for t in self.texts] for dim in self.dims]
        return np.array([a @ b for a, b in cut], np.float32)


def explain(
    model: Embedder,
    text: str,
    other: str | None = None,
    *,
    prompt: str = "",
    other_prompt: str = "",
    layers: Sequence[int] | None = None,
) -> Explanation:
    """Compute what the pictures of a text, or of two that are compared, show.

    Args:
        model: The embedding model; its backend computes.
        text: The text.
        other: The text to compare it with.
        prompt: What is put before the text.
        other_prompt: What is put before the other text.
        layers: The layers whose attention is kept, from 0 on. Default: all, or as many as there is room for,
            evenly spread.

    Raises:
        ValueError: A text is too long, a layer does not exist, or there is no room for so many.
    """
    c = model.config
    given = [(prompt, text)] + ([] if other is None else [(other_prompt, other)])
    ids = [i for before, one in given for i in model.tokenize([one], prompt=before)]
    chosen = _layers(layers, c.num_hidden_layers, c.num_attention_heads, [len(i) for i in ids])
    norm = model.checkpoint.weights(np.float32).norm
    return Explanation(
        model=str(model.checkpoint.folder),
        backend=repr(model.backend),
        shape=f"{c.num_hidden_layers} layers, {c.num_attention_heads} query heads on "
        f"{c.num_key_value_heads} key/value heads of {c.head_dim}, hidden_size {c.hidden_size}, "
        f"{model.checkpoint.num_parameters:,} parameters",
        generated=is_generated(model.checkpoint),
        texts=[_read(model, "".join(one), i, chosen, norm) for one, i in zip(given, ids, strict=True)],
        layers=chosen,
        num_layers=c.num_hidden_layers,
    )


def _layers(asked: Sequence[int] | None, layers: int, heads: int, lengths: list[int]) -> list[int]:
    """Return the layers whose attention finds room."""
    if not all(lengths):
        raise ValueError("the text has no tokens, and this model appends none: there is nothing to explain")
    of_layer = heads * sum(length * (length + 1) // 2 for length in lengths)
    room = MOST_PROBABILITIES // of_layer
    if not room or max(lengths) > MOST_TOKENS:
        fits = int((2 * MOST_PROBABILITIES / heads / len(lengths) + 0.25) ** 0.5 - 0.5)
        each = "each of two texts" if len(lengths) > 1 else "a text"
        raise ValueError(
            f"{' and '.join(map(str, lengths))} tokens are too many for a page: with {heads} heads it has "
            f"room for the attention of {min(fits, MOST_TOKENS)} tokens of {each}; shorten the text"
        )
    if asked is None:
        return sorted({round(i) for i in np.linspace(layers - 1, 0, min(room, layers))})
    chosen = sorted(set(asked))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < layers:
        raise ValueError(f"layers {list(asked)}: the model has the layers 0 to {layers - 1}")
    if len(chosen) > room:
        raise ValueError(
            f"{len(chosen)} layers are too many for a page: it has room for the attention of {room} layers "
            f"of {' and '.join(map(str, lengths))} tokens; name fewer"
        )
    return chosen


def _read(model: Embedder, text: str, ids: list[int], layers: list[int], norm: Floats) -> Reading:
    """Run one text through the backend's stages, and keep what the pictures show."""
    sizes: list[Floats] = []
    peaks: list[Floats] = []
    last: list[Floats] = []  # the pooled token's states
    probabilities: dict[int, Floats] = {}
    massive, largest, share = (0, 0, 0), np.float32(0), 0.0
    for stage, x in model.backend.stages([ids], layers):
        name, _, part = stage.partition(".")
        i, _, what = part.partition(".")
        if what == "probabilities":
            probabilities[int(i)] = x
        elif name in ("embed_tokens", "layers") and not what:  # the residual stream x_TD
            size_T, value_TD = np.linalg.norm(x, axis=1), np.abs(x)
            token, channel = divmod(int(value_TD.argmax()), x.shape[1])
            if value_TD[token, channel] > largest:
                massive, largest = (len(sizes), token, channel), value_TD[token, channel]
                share = float((largest / size_T[token]) ** 2)
            sizes.append(size_T)
            peaks.append(value_TD.max(axis=0))
            last.append(reference.pool(x).copy())
        elif stage == "norm":
            check_states(x[-1:], [ids], model.checkpoint, model.backend)
        elif stage == "pooled":
            [vector] = x
    as_if_last = reference.rms_norm(np.stack(last), norm, model.config.rms_norm_eps)
    return Reading(
        text=text,
        ids=ids,
        tokens=_tokens(model, ids),
        sizes=np.stack(sizes),
        peaks=np.stack(peaks),
        massive=massive,
        share=share,
        vectors=reference.normalize(as_if_last),
        vector=vector,
        probabilities=probabilities,
    )


def _tokens(model: Embedder, ids: list[int]) -> list[str]:
    """Return each token's text; of a character that several tokens share, the last has it, the others "…"."""
    tokens, first = [], 0
    for i in range(len(ids)):
        text = model.tokenizer.decode(ids[first : i + 1])
        whole = not text.endswith("\ufffd")  # what a part of a character decodes to
        tokens.append(text if whole else "…")
        first = i + 1 if whole else first
    return tokens
