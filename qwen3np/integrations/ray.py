"""Ray Data: texts to vectors, on as many machines as a cluster has (extra `ray`).

ds = ray.data.read_parquet("articles/")
ds = ds.map_batches(
    Embed, fn_constructor_args=["Qwen/Qwen3-Embedding-0.6B"], batch_format="pyarrow", batch_size=1024,
    num_cpus=8, compute=ray.data.ActorPoolStrategy(min_size=1, max_size=64),
)
ds.write_parquet("vectors/")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..embedder import Embedder
from .models import EMBEDDER


class Embed:
    """A class for `Dataset.map_batches`: it adds the vectors of a column of texts to each batch.

    An actor makes one, and so loads the model once. It computes with as many threads as CPUs were assigned to
    the actor (`num_cpus`): Ray sets OMP_NUM_THREADS to the same number, but binds no thread to a core. The
    vectors have the same bits whatever the number of actors, CPUs and batches.

    Batches of the format "pyarrow" get a column of the type that `qwen3np embed` writes, a list of fixed
    size; those of the format "numpy", Ray's default, an array [rows, dimension], which Ray keeps as a tensor.

    Args:
        model_name_or_path: As for Embedder. A folder must be there on every machine.
        column: The name of the column of texts.
        output_column: The name of the column of vectors.
        encode: The arguments of `Embedder.encode_document` for every batch: {"prompt_name": "query"} for
            queries, {"truncate_dim": 256}, {"precision": "ubinary"}.
        **arguments: The other arguments of Embedder. num_threads overrides the assigned CPUs.

    Raises:
        ImportError: Ray is not installed.
        ValueError: The vectors are to become int8 or uint8 without ranges: each batch would get its own.
    """

    def __init__(
        self,
        model_name_or_path: str | Path = EMBEDDER,
        *,
        column: str = "text",
        output_column: str = "embedding",
        encode: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        self.column, self.output_column, self.encode_arguments = column, output_column, dict(encode or {})
        if (
            self.encode_arguments.get("precision") in ("int8", "uint8")
            and "ranges" not in self.encode_arguments
        ):
            raise ValueError(
                "precision int8 and uint8 need the ranges of all vectors, not those of a batch: "
                'give encode={"precision": ..., "ranges": ...}'
            )
        arguments = {"num_threads": assigned_threads(), **arguments}
        self.model = Embedder(model_name_or_path, **arguments)

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the column of vectors.

        Args:
            batch: A dict of arrays, or an Arrow table.

        Raises:
            ValueError: It has no column of that name, or has one where the vectors are to go.
            TypeError: It is of another kind, or a row holds no text.
        """
        is_table = hasattr(batch, "append_column")
        if not is_table and not isinstance(batch, dict):
            raise TypeError(f'a batch is {type(batch).__name__}: give map_batches batch_format="pyarrow"')
        names = list(batch.column_names if is_table else batch)
        if self.column not in names:
            raise ValueError(
                f"no column {self.column!r}; there are {', '.join(map(repr, names))}: give column="
            )
        if self.output_column in names:
            raise ValueError(f"there is a column {self.output_column!r} already: give output_column=")
        vectors = self.model.encode_document(batch[self.column], **self.encode_arguments)
        if not is_table:
            return {**batch, self.output_column: vectors}
        import pyarrow as pa  # comes with ray[data]

        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return batch.append_column(self.output_column, lists)


def assigned_threads() -> int | None:
    """Return the CPUs that Ray assigned to this actor, at least 1; None outside of an actor."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError("qwen3np.integrations.ray needs Ray: pip install 'qwen3np[ray]'") from error
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
