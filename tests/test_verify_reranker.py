"""`qwen3np verify` of rerankers holds, and finds planted errors at their row.

It never claims the published scores without the published weights.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from qwen3np import CheckpointError, Reranker
from qwen3np.cli import main
from qwen3np.loading import model_cards
from qwen3np.loading.st_config import is_reranker
from qwen3np.loading.tokenizer import Leading, RerankerTokenizer
from qwen3np.reranker import sigmoid
from qwen3np.runtime.numba_backend import NumbaBackend
from qwen3np.synth import checkpoints as synth
from qwen3np.verify import published
from qwen3np.verify import report as verify

SYSTEM, BODY, ANSWER = RerankerTokenizer.SYSTEM, RerankerTokenizer.BODY, RerankerTokenizer.ANSWER


@pytest.fixture
def run(capsys):
    """Runs `qwen3np verify` in this process: (exit code, stdout, stderr)."""

    def run(*args: object) -> tuple[int, str, str]:
        code = main(["verify", *map(str, args)])
        return code, *capsys.readouterr()

    return run


def bad_rows(report: str) -> list[str]:
    """The names of the report's rows that fell short, from the top."""
    return [line.split("  ")[0] for line in report.splitlines() if line.endswith("  BAD")]


# ---- it holds


def test_it_holds_on_every_path(run, tiny_reranker, kernel):
    path, precision = kernel
    code, out, err = run(tiny_reranker, "--precision", precision)
    assert (code, err, bad_rows(out)) == (0, "", []), out
    assert f"numba, {path}, matmul_precision {precision}" in out
    assert "no published value among them" in out.splitlines()[-1]


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_it_holds_with_an_lm_head(run, untied_reranker, backend):
    code, out, err = run(untied_reranker, "--backend", backend)
    assert (code, err, bad_rows(out)) == (0, "", []) and f"backend   {backend}, " in out, out


def test_the_score_is_the_last_stage(tiny_reranker):
    model = Reranker(tiny_reranker)
    result = verify.verify(model)
    assert [row.stage for row in result.stages[-3:]] == ["norm", "pooled", "scores"]
    most = 1.2e-6 * verify.STAGE_TOLERANCE[model.backend.arithmetic]
    assert 0 < result.stages[-1].relative <= result.stages[-1].tolerance < most
    assert result.stages[-1].max_abs < 1e-3


@pytest.fixture(scope="module")
def whole_vocabulary(assets, tmp_path_factory) -> Path:
    """A narrow reranker with the published tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        wide = dataclasses.replace(synth.LIKE["reranker-tiny"], vocab_size=151669)
        patch.setitem(synth.LIKE, "reranker-tiny", wide)
        tokenizer = assets / "tokenizers" / "qwen3_base.tokenizer.json"
        return synth.synthesize(tmp_path_factory.mktemp("models") / "m", "reranker-tiny", tokenizer=tokenizer)


@pytest.mark.slow
def test_the_published_token_ids_are_compared_under_the_published_tokenizer(whole_vocabulary):
    model = Reranker(whole_vocabulary, backend="numpy")
    result = verify.verify(model)
    assert [(c.name, c.verdict) for c in result.tokens if c.verdict != "ok"] == []
    assert len(result.tokens) == 9
    model.answers = model.answers[::-1]
    assert verify.verify(model).bad[0] == "answers"
    model.answers = published.YES_NO
    model.tokenizer.answer = model.tokenizer.answer[:-1]
    assert verify.verify(model).bad == [
        "answer's part of the prompt",
        "body as one string",
        "ids of the answer's part",
        "ids of 'What is th' x 'The capita'",
        "ids of 'Which plan' x 'Venus is o'",
        "from text as from its ids",
    ]


def test_the_published_token_ids_are_the_collected_ones(assets):
    collected = json.loads((assets / "golden" / "token_ids_computed.json").read_text())
    assert collected["reranker_prefix"] == {"text": model_cards.RERANKER_SYSTEM, "ids": published.SYSTEM_IDS}
    assert collected["reranker_suffix"] == {"text": model_cards.RERANKER_ANSWER, "ids": published.ANSWER_IDS}
    names = ("rr_card_pos", "rr_red_planet_0")
    for (query, document, ids), name in zip(published.PAIR_IDS, names, strict=True):
        body = model_cards.reranker_body(query, document)
        assert collected[name]["text"] == model_cards.RERANKER_SYSTEM + body + model_cards.RERANKER_ANSWER
        assert collected[name]["ids"] == published.SYSTEM_IDS + ids + published.ANSWER_IDS


# ---- planted errors


@pytest.mark.parametrize(
    "part, wrong, row",
    [
        ("ANSWER", ANSWER.removesuffix("\n"), "answer's part of the prompt"),
        ("BODY", BODY.replace("<Query>: ", "<Query>:"), "instruction, query, document"),
        ("BODY", BODY.replace("{query}\n", "{query}"), "instruction, query, document"),
        ("BODY", BODY + "\n", "body as one string"),
        ("SYSTEM", SYSTEM.removesuffix("\n"), "system's part of the prompt"),
    ],
)
def test_an_error_in_the_prompt_is_found(run, tiny_reranker, monkeypatch, part, wrong, row):
    assert wrong != getattr(RerankerTokenizer, part)
    monkeypatch.setattr(RerankerTokenizer, part, wrong)
    code, out, _ = run(tiny_reranker)
    assert code == 1 and bad_rows(out)[0] == row, out
    assert bad_rows(out)[-1] == "from text as from its ids"


def test_a_body_tokenised_in_parts_is_found(run, tiny_reranker, monkeypatch):
    leading = RerankerTokenizer.leading

    def in_parts(self, texts, most, *escape):
        for text in texts:
            ids = [i for part in leading(self, re.split("(?<=: )", text), most, *escape) for i in part.ids]
            yield Leading(ids[:most], len(ids), True)

    monkeypatch.setattr(RerankerTokenizer, "leading", in_parts)
    code, out, _ = run(tiny_reranker)
    assert code == 1 and bad_rows(out) == ["body as one string", "from text as from its ids"]


def test_swapped_yes_and_no_are_found(run, tiny_reranker, monkeypatch):
    rows, scores = Reranker._rows, Reranker.scores
    for name, wrong in (
        ("_rows", lambda self, answers: rows(self, answers[::-1])),
        ("scores", lambda self, logits: -scores(self, logits)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Reranker, name, wrong)
            code, out, _ = run(tiny_reranker)
        assert code == 1 and bad_rows(out) == ["scores"], out


def test_rows_of_the_wrong_matrix_are_found(run, untied_reranker, monkeypatch):
    def of_embed_tokens(self, answers):
        return self.checkpoint.weights(np.float64).rows("embed_tokens.weight")[list(answers)]

    monkeypatch.setattr(Reranker, "_rows", of_embed_tokens)
    code, out, _ = run(untied_reranker)
    assert code == 1 and bad_rows(out) == ["scores"], out


def test_scores_that_depend_on_what_is_shared_are_found(run, tiny_reranker, monkeypatch):
    run_step = NumbaBackend._pooled

    def drifting(self, job, texts, known, saved):
        system = 75  # tokens, with the small tokenizer
        return run_step(self, job, texts, known, saved) * np.float32(1.001 if len(known) > system else 1)

    monkeypatch.setattr(NumbaBackend, "_pooled", drifting)
    code, out, _ = run(tiny_reranker)
    assert code == 1 and "a query's tokens shared or not" in bad_rows(out), out


def test_another_probability_is_found(run, tiny_reranker, monkeypatch):
    activation_fn = property(lambda self: lambda x: sigmoid(x * np.float32(1.01)), lambda self, value: None)
    monkeypatch.setattr(Reranker, "activation_fn", activation_fn)
    code, out, _ = run(tiny_reranker)
    assert code == 1 and bad_rows(out) == ["probability = sigmoid(yes - no)"], out


# ---- published scores


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Path:
    """A tiny reranker that is not recognised as generated, with its own scores as the published ones."""
    with monkeypatch.context() as patch:
        patch.setattr(synth, "MASSIVE_GAMMA", 0.06)
        folder = tmp_path / "models--Some--Reranker" / "snapshots" / "0a1b"
        synth.synthesize(folder, "reranker-tiny")
    publish(folder, monkeypatch)
    return folder


def publish(folder: Path, monkeypatch, error: float = 0.0) -> None:
    card = published.LOGIT_DIFFERENCES["Qwen/Qwen3-Reranker-0.6B"][1]
    model = Reranker(folder, backend="numpy")
    raw = model.predict([(card.query, d) for d in card.documents], raw_scores=True).astype(np.float64)
    probabilities = 1 / (1 + np.exp(-raw))
    raw[1] += error
    values = dataclasses.replace(card, differences=raw.tolist(), probabilities=probabilities.tolist())
    monkeypatch.setitem(published.LOGIT_DIFFERENCES, "Some/Reranker", [values])
    monkeypatch.setattr(published, "RERANKER_SHAPES", {(96, 224, 4): "Some/Reranker"})


def test_published_scores_are_compared_when_the_hub_id_is_known(run, trained, monkeypatch):
    code, out, _ = run(trained)
    assert code == 0 and "4 published values among them" in out.splitlines()[-1], out
    publish(trained, monkeypatch, error=3e-3)
    code, out, _ = run(trained)
    assert code == 1 and bad_rows(out) == ["'What is th' x 'Gravity is' [1]"]


def test_published_scores_need_the_published_weights(run, trained, tiny_reranker, tmp_path):
    folder = trained.rename(tmp_path / "folder")
    code, out, _ = run(folder)
    assert code == 0 and out.count("needs the published weights") == 4 and "--published" in out
    code, out, _ = run(folder, "--published")
    assert code == 0 and "4 published values among them" in out.splitlines()[-1]
    code, out, _ = run(tiny_reranker)
    assert code == 0 and out.count("needs the published weights") == 4 and "generated" in out
    code, out, err = run(tiny_reranker, "--published")
    assert (code, out) == (2, "") and "the weights are generated" in err


# ---- which kind of model a folder holds


def test_a_reranker_is_recognised_without_modules_json(tiny, tiny_reranker, tmp_path):
    assert is_reranker(tiny_reranker) and not is_reranker(tiny)
    folder = Path(shutil.copytree(tiny_reranker, tmp_path / "folder"))
    (folder / "modules.json").unlink()
    assert not is_reranker(folder)  # its tokenizer ends texts, as that of an embedding model saved so does
    for name, expected in (("Qwen3-Reranker-0.6B", True), ("Qwen3-Embedding-0.6B", False)):
        snapshot = tmp_path / f"models--Qwen--{name}" / "snapshots" / "0a1b"
        snapshot.parent.mkdir(parents=True)
        snapshot.symlink_to(folder)
        assert is_reranker(snapshot) is expected
    tokenizer = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert is_reranker(folder)
    shutil.copy(tiny / "model.safetensors", folder / "model.safetensors")  # names without "model."
    assert not is_reranker(folder)
    with pytest.raises(CheckpointError, match="holds no config.json"):
        is_reranker(tmp_path)
