"""`qwen3np verify` holds for every backend, precision and path, and finds planted errors at their stage.

It never claims parity with the model card without the published weights.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import sys
import types
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from qwen3np import Embedder, reference
from qwen3np.loading.checkpoint import Checkpoint, Tensor
from qwen3np.loading.tokenizer import EmbeddingTokenizer
from qwen3np.runtime import backend as backends
from qwen3np.runtime import numba_backend
from qwen3np.runtime.numba_backend import NumbaBackend
from qwen3np.runtime.stages import reference_stages
from qwen3np.runtime.threads import Job, Pool
from qwen3np.synth import checkpoints as synth
from qwen3np.verify import published
from qwen3np.verify import report as verify
from qwen3np.verify.compare import compare_stages, stage_table

CARD = published.COSINES[published.CARD_MODEL][0]
LEADING = published.LEADING_VALUES[published.CARD_MODEL][1]


@pytest.fixture
def run(run):
    """Run `qwen3np verify` in this process: (exit code, stdout, stderr)."""
    return partial(run, "verify")


def bad_rows(report: str) -> list[str]:
    """The names of the report's rows that fell short, from the top."""
    return [line.split("  ")[0] for line in report.splitlines() if line.endswith("  BAD")]


# ---- it holds


def test_it_holds_on_every_path(run, tiny, kernel):
    path, precision = kernel
    code, out, err = run(tiny, "--precision", precision)
    assert (code, err, bad_rows(out)) == (0, "", []), out
    assert f"numba, {path}, matmul_precision {precision}" in out
    assert "no published value among them" in out.splitlines()[-1]


@pytest.mark.parametrize(
    "name, settings",
    [
        ("tokenizer_config.json", {"truncation_side": "left", "model_max_length": 20}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("modules.json", None),
    ],
)
def test_it_holds_for_what_folders_set(run, tiny_copy, name, settings):
    """A cut of the beginning, lower case, and vectors that are not normalised."""
    path = tiny_copy / name
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **settings} if settings else known[:2]))
    code, out, _ = run("--model", tiny_copy, "--backend", "numpy")
    assert code == 0, bad_rows(out)


def test_it_holds_for_the_reading_copy(run, tiny):
    code, out, _ = run("--model", tiny, "--backend", "numpy")
    assert code == 0 and "numpy, the reading copy" in out and out.splitlines()[-1].startswith("HELD")


def test_stages_end_in_the_bits_of_encode(tiny, kernel):
    """Also past a block of 256 tokens and where texts share a panel."""
    backend = NumbaBackend(Checkpoint(tiny), kernel[1])
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 2048, n).tolist() for n in (1, 17, 300, 15, 1, 700)]
    before = backend.forward(texts)
    stages = dict(backend.stages(texts))
    np.testing.assert_array_equal(stages["pooled"], reference.normalize(before))
    np.testing.assert_array_equal(backend.forward(texts), before)
    ends = np.cumsum([len(t) for t in texts])
    np.testing.assert_array_equal(reference.normalize(stages["norm"][ends - 1]), stages["pooled"])
    for i in range(4):
        parts = stages[f"layers.{i}.self_attn"] + stages[f"layers.{i}.mlp"]
        before = stages[f"layers.{i - 1}" if i else "embed_tokens"]
        np.testing.assert_allclose(before + parts, stages[f"layers.{i}"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 15, 300, 512])
def test_attention_is_a_stage(tiny, kernel, tokens):
    """Also beyond a block of 256 tokens; and no other stage is changed by it."""
    checkpoint = Checkpoint(tiny)
    backend = NumbaBackend(checkpoint, kernel[1])
    texts = [np.random.default_rng(tokens).integers(0, 2000, tokens).tolist()]
    asked = {"probabilities": (1, 3)}
    found = list(backend.stages(texts, **asked))
    exact, float32 = (
        reference_stages(texts, checkpoint.weights(dtype), **asked) for dtype in (np.float64, np.float32)
    )
    rows = compare_stages(exact, found, verify.STAGE_TOLERANCE[backend.arithmetic], float32)
    assert all(row.ok for row in rows), stage_table(rows)
    assert sum("probabilities" in name for name, _ in found) == 2
    others = [stage for stage in found if "probabilities" not in stage[0]]
    for (name, x), (other, y) in zip(backend.stages(texts), others, strict=True):
        assert name == other
        np.testing.assert_array_equal(x, y, name)


def test_the_stages_are_all_there_in_forward_order(tiny):
    result = verify.verify(Embedder(tiny))
    layers = [f"layers.{i}{part}" for i in range(4) for part in (".self_attn", ".mlp", "")]
    assert [row.stage for row in result.stages] == ["embed_tokens", *layers, "norm", "pooled"]
    assert all(0 < row.relative <= row.tolerance for row in result.stages[1:])
    assert result.held and result.bad == []


@pytest.mark.slow
def test_the_published_token_ids_are_compared_under_the_published_tokenizer(assets, tmp_path, monkeypatch):
    """With a narrow model of the whole vocabulary."""
    wide = dataclasses.replace(synth.LIKE["tiny"], vocab_size=151669)
    monkeypatch.setitem(synth.LIKE, "vocabulary", wide)
    tokenizer = assets / "tokenizers" / "qwen3_embedding_0.6b.tokenizer.json"
    model = Embedder(synth.synthesize(tmp_path / "m", "vocabulary", tokenizer=tokenizer), backend="numpy")
    result = verify.verify(model)
    compared = [c for c in result.tokens if c.name.startswith("ids of")]
    assert len(compared) == len(published.TOKEN_IDS) and all(c.verdict == "ok" for c in compared)
    model.prompts["query"] += " "
    assert verify.verify(model).bad == [
        "query prompt",
        *(c.name for c in compared if c.name.startswith("ids of query")),
    ]


# ---- planted errors

Damage = dict[str, np.ndarray]


def swapped_layers(tensors: dict[str, Tensor]) -> Damage:
    other = {"layers.1.": "layers.2.", "layers.2.": "layers.1."}
    return {name: tensors[other[name[:9]] + name[9:]].data for name in tensors if name[:9] in other}


def flipped_weight(tensors: dict[str, Tensor]) -> Damage:
    bits = tensors["layers.2.mlp.up_proj.weight"].data.copy()
    bits[3, 5] ^= 0x8000  # the sign of one of 21,504
    return {"layers.2.mlp.up_proj.weight": bits}


def interleaved_rope(tensors: dict[str, Tensor]) -> Damage:
    """Channels (2i, 2i + 1) put where (i, i + H/2) are turned together: nothing but RoPE is changed."""
    order = np.r_[0:32:2, 1:32:2]
    damage = {}
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            damage[name] = tensor.data.reshape(-1, 32, 96)[:, order].reshape(tensor.shape)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            damage[name] = tensor.data[order]
    return damage


def not_a_number(tensors: dict[str, Tensor]) -> Damage:
    bits = tensors["layers.1.self_attn.o_proj.weight"].data.copy()
    bits[0, 0] = 0x7FC0
    return {"layers.1.self_attn.o_proj.weight": bits}


def small_weight(tensors: dict[str, Tensor]) -> Damage:
    """The last of eight bits of one weight of a final gamma."""
    bits = tensors["norm.weight"].data.copy()
    bits[7] ^= 1
    return {"norm.weight": bits}


PLANTED = [
    (swapped_layers, "layers.1.self_attn"),
    (flipped_weight, "layers.2.mlp"),
    (interleaved_rope, "layers.0.self_attn"),
    (not_a_number, "layers.1.self_attn"),
    (small_weight, "norm"),
]


def damaged(checkpoint: Checkpoint, damage) -> Checkpoint:
    other = copy.copy(checkpoint)
    changes = damage(checkpoint.tensors)
    other.tensors = checkpoint.tensors | {n: Tensor(n, "BF16", data) for n, data in changes.items()}
    return other


@pytest.mark.parametrize("damage, stage", PLANTED)
def test_an_error_in_what_the_backend_reads_is_found_at_its_stage(run, tiny, monkeypatch, damage, stage):
    init = NumbaBackend.__init__
    monkeypatch.setattr(
        NumbaBackend, "__init__", lambda self, c, *args: init(self, damaged(c, damage), *args)
    )
    code, out, err = run(tiny)
    assert (code, err) == (1, "") and bad_rows(out)[0] == stage, out
    assert out.splitlines()[-1].endswith(f"the first of them: {stage}")
    assert bad_rows(out)[-1] != stage  # and it went on


@pytest.mark.parametrize("damage, stage", [(not_a_number, "layers.1.self_attn"), (small_weight, "norm")])
def test_an_error_in_what_the_reading_copy_reads_is_found_too(tiny, damage, stage):
    model = Embedder(tiny)
    model.checkpoint = damaged(model.checkpoint, damage)
    assert verify.verify(model).bad[0] == stage


def test_a_float16_residual_stream_is_found_in_the_kernels(run, tiny, monkeypatch):
    run_kernel = Job.run

    def rounded(self, kernel, *arguments):
        run_kernel(self, kernel, *arguments)
        if kernel is numba_backend.engine.stage and arguments[0] >= 0:  # -1 is the embedding
            x = arguments[4].x
            x[:] = x.astype(np.float16)

    monkeypatch.setattr(Job, "run", rounded)
    code, out, _ = run(tiny)
    assert code == 1 and bad_rows(out)[0] == "layers.0"
    assert "stages end in encode's vectors" in bad_rows(out)  # encode itself was not rounded


SOURCE_ERRORS = [
    ("    return x_TD\n", "    return x_TD.astype(np.float16).astype(x_TD.dtype)\n", "layers.0"),
    ("x_TD[-1]", "x_TD[0]", "pooled"),
]


@pytest.mark.parametrize("right, wrong, stage", SOURCE_ERRORS, ids=["float16 residual", "pooling"])
def test_an_error_in_the_backends_code_is_found(run, tiny, monkeypatch, right, wrong, stage):
    source = inspect.getsource(reference)
    assert right in source, "the line to change is gone: update this test"
    module = types.ModuleType("planted")
    exec(source.replace(right, wrong), module.__dict__)
    monkeypatch.setattr(backends, "reference", module)
    code, out, _ = run(tiny, "--backend", "numpy")
    assert code == 1 and bad_rows(out)[0] == stage


def test_a_missing_appended_token_is_found(run, tiny, monkeypatch):
    encode = EmbeddingTokenizer.encode
    monkeypatch.setattr(
        EmbeddingTokenizer, "encode", lambda *args, **kw: [ids[:-1] for ids in encode(*args, **kw)]
    )
    code, out, _ = run(tiny)
    assert code == 1 and bad_rows(out)[0] == "<|endoftext|> once, at the end"
    assert "from text as from its ids" in bad_rows(out)


def test_a_prompt_tokenised_apart_is_found(run, tiny, monkeypatch):
    encode = EmbeddingTokenizer.encode

    def apart(self, texts, max_length, prompt="", cut=None):
        [first] = encode(self, [prompt], max_length)
        return [first[:-1] + ids for ids in encode(self, texts, max_length)]

    monkeypatch.setattr(EmbeddingTokenizer, "encode", apart)
    code, out, _ = run(tiny)
    assert code == 1 and bad_rows(out) == ["prompt and text as one string"]


def test_a_space_after_query_is_found(run, tiny_copy):
    settings = tiny_copy / "config_sentence_transformers.json"
    settings.write_text(settings.read_text().replace("Query:", "Query: "))
    code, out, _ = run(tiny_copy)
    assert code == 1 and bad_rows(out) == ["query prompt"]
    settings.write_text(settings.read_text().replace("Query: ", "Search "))  # another model's own prompt
    code, out, _ = run(tiny_copy)
    assert code == 0 and "the model has another" in out


def test_vectors_that_depend_on_the_batch_are_found(run, tiny, monkeypatch):
    encode = NumbaBackend.forward

    def padded(self, texts, *rest):
        states = encode(self, texts)
        return states if len(texts) < 7 else states * np.float32(1 + 2**-20)

    monkeypatch.setattr(NumbaBackend, "forward", padded)
    code, out, _ = run(tiny)
    assert code == 1 and "alone as in a batch" in bad_rows(out)


def test_vectors_that_depend_on_the_threads_are_found(run, tiny, monkeypatch):
    if Pool().num_threads == 1:
        pytest.skip("one core")
    encode = NumbaBackend.forward

    def by_threads(self, texts, *rest):
        return encode(self, texts) * np.float32(1 + self.num_threads % 2)

    monkeypatch.setattr(NumbaBackend, "forward", by_threads)
    code, out, _ = run(tiny, "--threads", 2)
    assert code == 1 and bad_rows(out) == ["on 1 thread as on 2"]


# ---- published scores


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Path:
    """A tiny model that is not recognised as generated, with its own scores as the published ones."""
    with monkeypatch.context() as patch:
        patch.setattr(synth, "MASSIVE_GAMMA", 0.06)
        folder = tmp_path / "models--Some--Model" / "snapshots" / "0a1b"
        synth.synthesize(folder, "tiny", layers=1)
    publish(folder, monkeypatch)
    return folder


def publish(folder: Path, monkeypatch, error: float = 0.0) -> None:
    model = Embedder(folder, backend="numpy")
    scores = model.similarity(
        model.encode_query(published.CARD_QUERIES), model.encode_document(published.CARD_DOCUMENTS)
    )
    scores[1, 0] += error
    card = dataclasses.replace(CARD, scores=scores.tolist(), tolerance=1e-5)
    values = model.encode_query("hello world")[:5].tolist()
    head = dataclasses.replace(LEADING, values=values)
    monkeypatch.setattr(published, "COSINES", {"Some/Model": [card]})
    monkeypatch.setattr(published, "LEADING_VALUES", {"Some/Model": [head]})
    monkeypatch.setattr(published, "SHAPES", {(96, 224, layers): "Some/Model" for layers in (1, 4)})


def test_published_scores_are_compared_when_the_hub_id_is_known(run, trained, monkeypatch):
    code, out, _ = run(trained)
    assert code == 0 and "5 published values among them" in out.splitlines()[-1]
    publish(trained, monkeypatch, error=1e-4)  # the tolerance is 1e-5, and 3e-5 for "high" on AMX
    code, out, _ = run(trained)
    assert code == 1 and bad_rows(out) == ["'Explain gr' x 'The capita' [1]"]


def test_published_scores_of_a_folder_are_compared_when_asked_for(run, trained, tmp_path):
    folder = trained.rename(tmp_path / "folder")
    code, out, _ = run(folder)
    assert code == 0 and out.count("needs the published weights") == 5 and "--published" in out
    assert "no published value among them" in out.splitlines()[-1]
    code, out, _ = run(folder, "--published")
    assert code == 0 and "5 published values among them" in out.splitlines()[-1]


def test_generated_weights_never_claim_the_card(run, tiny, tmp_path, monkeypatch):
    """Not in a folder, not where a published model's snapshot would be, not when told to."""
    publish(tiny, monkeypatch)
    snapshot = tmp_path / "models--Some--Model" / "snapshots" / "0a1b"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny)
    for folder in (tiny, snapshot):
        code, out, _ = run(folder)
        assert code == 0 and out.count("needs the published weights") == 5 and "generated" in out
        code, out, err = run(folder, "--published")
        assert (code, out) == (2, "") and "the weights are generated" in err


def test_generated_weights_are_recognised_by_their_values(tiny):
    checkpoint = Checkpoint(tiny)
    assert synth.is_generated(checkpoint)
    widened = copy.copy(checkpoint)
    widened.tensors = {n: Tensor(n, "F32", t.widen()) for n, t in checkpoint.tensors.items()}
    assert synth.is_generated(widened)
    assert synth.is_generated(damaged(checkpoint, small_weight))
    norms = [n for n in checkpoint.tensors if "norm" in n]
    assert not synth.is_generated(damaged(checkpoint, lambda t: {n: t[n].data ^ np.uint16(1) for n in norms}))


# ---- the command


def test_the_json_file_has_every_row(run, tiny, tmp_path, monkeypatch):
    publish(tiny, monkeypatch)
    code, out, _ = run(tiny, "--json", tmp_path / "v.json")
    values = json.loads((tmp_path / "v.json").read_text())
    assert values["held"] is True and values["summary"] == out.splitlines()[-1]
    assert [row["verdict"] for row in values["stages"]] == ["ok"] * 15
    assert values["stages"][1]["max_abs"] > 0 and len(values["published"]) == 5
    assert {"expected", "got", "difference", "tolerance", "verdict", "source"} < set(values["published"][0])
    assert [x for x in out.splitlines() if len(x) > 100 and str(tiny) not in x] == []
    assert [p.name for p in tmp_path.iterdir()] == ["v.json"]


def test_a_nan_is_null_in_json(run, tiny, tmp_path, monkeypatch):
    init = NumbaBackend.__init__
    monkeypatch.setattr(
        NumbaBackend, "__init__", lambda self, c, *args: init(self, damaged(c, not_a_number), *args)
    )
    assert run(tiny, "--json", tmp_path / "v.json")[0] == 1
    values = json.loads((tmp_path / "v.json").read_text(), parse_constant=pytest.fail)
    assert values["stages"][-1]["max_abs"] is None and values["stages"][-1]["verdict"] == "BAD"


@pytest.mark.parametrize(
    "args, reason",
    [
        (["./missing"], "no such folder"),
        (["."], "holds no config.json"),
        (["TINY", "--json", "missing/v.json"], "--json missing/v.json: cannot be written"),
        (["TINY", "--json", "."], "--json .: is a folder"),
        (["TINY", "--published"], "no values are published for a model of this shape (hidden_size 96"),
        (["TINY", "--precision", "low"], "invalid choice: 'low'"),
        (["TINY", "--against", "transformers"], 'pip install "qwen3np[hf]"'),
    ],
)
def test_what_cannot_run_is_one_line_and_exit_code_2(run, tiny, tmp_path, monkeypatch, args, reason):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*[tiny if arg == "TINY" else arg for arg in args])
    assert (code, out) == (2, "") and err.count("\n") == 1 and reason in err
    assert list(tmp_path.iterdir()) == []


def test_an_older_json_file_survives_a_run_that_fails(run, tiny, tmp_path, monkeypatch):
    (tmp_path / "v.json").write_text("precious")
    assert run(tiny, "--json", tmp_path / "v.json", "--precision", "low")[0] == 2
    full = OSError(28, "No space left on device")
    with mock.patch("qwen3np.files.atomic.write", side_effect=full):
        code, _, err = run(tiny, "--json", tmp_path / "v.json")
    assert code == 2 and "No space left" in err
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("v.json", "precious")]
