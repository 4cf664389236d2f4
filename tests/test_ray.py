"""Ray Data and Spark: the bits of one process, also where an actor is killed; what a batch must hold."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3np.integrations.ray import Embed

PAGE = Path(__file__).parent.parent / "docs" / "processes-and-machines.md"
MODEL = "Qwen/Qwen3-Embedding-0.6B"
ROWS = 160


def run_snippet(language: str, model: Path, shared: Path) -> None:
    """Run the page's only snippet for this library, on a generated model and a folder of its own."""
    [found] = re.findall(rf"```python {language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    exec(found.replace(MODEL, str(model)).replace("/shared", str(shared)), {})


@pytest.fixture
def texts() -> list[str]:
    return [f"{'long ' * (i % 40)}text number {i}" for i in range(ROWS)]


@pytest.fixture
def shared(texts, tmp_path) -> Path:
    """A folder with articles/, of four Parquet files."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "articles").mkdir()
    for start in range(0, ROWS, ROWS // 4):
        rows = range(start, start + ROWS // 4)
        table = pa.table({"id": list(rows), "text": [texts[i] for i in rows]})
        pq.write_table(table, tmp_path / "articles" / f"{start}.parquet")
    return tmp_path


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason='needs the extra: pip install ".[cluster]"')
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # or Ray warns of GPUs it does not hide
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 27)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


def written(folder: Path) -> tuple[list[int], np.ndarray]:
    """The ids and vectors of all Parquet files in a folder, in the order of the ids."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder).sort_by("id")
    return table["id"].to_pylist(), np.float32(table["embedding"].to_pylist())


@pytest.mark.cluster
def test_two_actors_one_of_them_killed_give_every_row_once_with_the_bits_of_one_process(
    cluster, tiny, model, texts, shared
):
    """SIGKILL strikes an actor when it has computed its second batch and not handed it over."""

    class Dies(Embed):
        batches = 0

        def __call__(self, batch):
            result = super().__call__(batch)
            self.batches += 1
            (shared / f"process {os.getpid()}").touch()
            if self.batches == 2 and not (shared / "killed").exists():
                (shared / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    blocks = cluster.data.read_parquet(str(shared / "articles")).repartition(target_num_rows_per_block=8)
    vectors = blocks.map_batches(
        Dies, fn_constructor_args=[str(tiny)], batch_format="pyarrow", batch_size=8, num_cpus=1,
        compute=cluster.data.ActorPoolStrategy(size=2),
    )  # fmt: skip
    vectors.write_parquet(str(shared / "vectors"))
    ids, found = written(shared / "vectors")
    assert ids == list(range(ROWS))
    assert (shared / "killed").exists() and len(list(shared.glob("process *"))) == 3, "two, and one more"
    np.testing.assert_array_equal(found, model.encode_document(texts))


@pytest.mark.cluster
def test_the_pages_script_and_the_threads_of_an_actor(cluster, tiny, model, texts, shared, run):
    """Run again it doubles nothing, `qwen3np search` reads its files; an actor has its CPUs' threads."""
    run_snippet("ray", tiny, shared)
    run_snippet("ray", tiny, shared)
    ids, found = written(shared / "vectors")
    assert ids == list(range(ROWS))
    np.testing.assert_array_equal(found, model.encode_document(texts))
    [file] = (shared / "vectors").iterdir()
    code, _, errors = run("search", file, "--model", tiny, texts[0])
    assert code == 0, errors

    actor = cluster.remote(num_cpus=1)(Embed).remote(str(tiny))
    threads = actor.__ray_call__.remote(lambda self: self.model.backend.num_threads)
    assert cluster.get(threads) == 1
    arrays = actor.__call__.remote({"text": np.array(texts[:3], object)})
    np.testing.assert_array_equal(cluster.get(arrays)["embedding"], model.encode_document(texts[:3]))


@pytest.mark.cluster
def test_spark_gives_the_bits_of_one_process(tiny, model, texts, shared, monkeypatch):
    pytest.importorskip("pyspark", reason='needs the extra: pip install ".[cluster]"')
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java 17")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    run_snippet("spark", tiny, shared)
    ids, found = written(shared / "vectors")
    assert ids == list(range(ROWS))
    np.testing.assert_array_equal(found, model.encode_document(texts))


def test_what_cannot_be_a_batch_is_refused(tiny, monkeypatch):
    monkeypatch.setattr("qwen3np.integrations.ray.assigned_threads", lambda: None)
    embed = Embed(tiny, column="body")
    with pytest.raises(ValueError, match="no column 'body'; there are 'id', 'text': give column="):
        embed({"id": np.arange(2), "text": np.array(["a", "b"])})
    with pytest.raises(ValueError, match="a column 'embedding' already"):
        embed({"body": np.array(["a"]), "embedding": np.zeros(1)})
    with pytest.raises(TypeError, match="text 1 is NoneType"):
        embed({"body": np.array(["a", None], object)})
    with pytest.raises(TypeError, match='batch_format="pyarrow"'):
        embed(["a"])
    with pytest.raises(ValueError, match="need the ranges of all vectors"):
        Embed(tiny, encode={"precision": "int8"})


def test_without_ray_the_error_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'qwen3np\[ray\]'"):
        Embed(tiny)
