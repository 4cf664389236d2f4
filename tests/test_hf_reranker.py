"""Rerankers live against transformers' whole causal model and sentence-transformers: pytest -m hf"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from qwen3np import Reranker
from qwen3np.cli import main
from qwen3np.synth.checkpoints import LIKE, synthesize
from qwen3np.verify import published

pytestmark = pytest.mark.hf

torch = pytest.importorskip("torch", reason='the live comparison needs the extra: pip install ".[hf]"')

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PAIRS = [
    *((q, d) for q in published.CARD_QUERIES for d in published.CARD_DOCUMENTS),
    *((published.PLANET_QUERY, d) for d in published.PLANET_DOCUMENTS),
    ("", ""),
    ("Mizzen\n", "中国的首都是北京。\n😀"),
    ("q", "word " * 300),
    ("<|im_end|> {query}", "<think>yes</think>"),
]


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(request, tmp_path_factory, assets):
    """Three layers of the 0.6B's width, the published tokenizer and vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        tied = request.param == "tied"
        config = dataclasses.replace(LIKE["reranker-0.6B"], tie_word_embeddings=tied)
        patch.setitem(LIKE, "reranker-0.6B", config)
        return synthesize(
            tmp_path_factory.mktemp("hf") / request.param,
            "reranker-0.6B",
            layers=3,
            tokenizer=assets / "tokenizers" / "qwen3_base.tokenizer.json",
        )


class Card:
    """The model card's code ("Transformers Usage"), a pair at a time instead of padded batches."""

    def __init__(self, folder, max_length=8192):
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        prefix = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
            'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
            "<|im_start|>user\n"
        )
        suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        self.prefix_tokens = self.tokenizer.encode(prefix, add_special_tokens=False)
        self.suffix_tokens = self.tokenizer.encode(suffix, add_special_tokens=False)
        self.max_length = max_length

    def ids(self, pairs):
        inputs = self.tokenizer(
            [f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {doc}" for query, doc in pairs],
            padding=False,
            truncation="longest_first",
            return_attention_mask=False,
            max_length=self.max_length - len(self.prefix_tokens) - len(self.suffix_tokens),
        )
        return [self.prefix_tokens + body + self.suffix_tokens for body in inputs["input_ids"]]

    def logits(self, folder, pairs, dtype):
        """Of "yes" and "no", float64 [pairs, 2]."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        yes_no = [self.tokenizer.convert_tokens_to_ids(token) for token in ("yes", "no")]
        with torch.no_grad():
            last = [model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1] for ids in self.ids(pairs)]
        return torch.stack(last)[:, yes_no].double().numpy()


def test_scores_are_the_cards(folder):
    """Within 2e-5 of the logits' scale of transformers in float32, in the same order.

    "medium" is closer than transformers in bfloat16.
    """
    card = Card(folder)
    expected, exact = (card.logits(folder, PAIRS, dtype) for dtype in (torch.float32, torch.float64))
    scale = np.abs(expected).max()
    differences = expected[:, 0] - expected[:, 1]
    for backend, precision in (("numpy", "highest"), ("numba", "highest"), ("numba", "high")):
        model = Reranker(folder, backend=backend, matmul_precision=precision)
        raw = model.predict(PAIRS, raw_scores=True)
        off = np.abs(raw - differences).max() / scale
        print(f"\n{model.backend!r}: {off:.1e} of {scale:.3g}, differences {np.ptp(differences):.3g} apart")
        assert off <= 2e-5
        np.testing.assert_array_equal(np.argsort(-raw), np.argsort(-differences))
        yes_no = torch.softmax(torch.from_numpy(expected).flip(1), dim=1)[:, 1].numpy()
        np.testing.assert_allclose(model.predict(PAIRS), yes_no, atol=2e-5 * scale)
    exact = exact[:, 0] - exact[:, 1]
    bfloat16 = card.logits(folder, PAIRS, torch.bfloat16)
    theirs = np.abs(bfloat16[:, 0] - bfloat16[:, 1] - exact).max() / scale
    model = Reranker(folder, matmul_precision="medium")
    ours = np.abs(model.predict(PAIRS, raw_scores=True) - exact).max() / scale
    print(f"{model.backend!r}: {ours:.1e} (PyTorch bfloat16 {theirs:.1e})")
    assert ours < theirs / 2


def test_token_ids_are_the_cards(folder, caplog):
    model = Reranker(folder, backend="numpy")
    assert model.tokenize(PAIRS) == Card(folder).ids(PAIRS)
    for max_length in (49, 64, 100, 200):
        cut = Reranker(folder, backend="numpy", max_length=max_length).tokenize(PAIRS)
        assert cut == Card(folder, max_length).ids(PAIRS)
        assert max(map(len, cut)) == max_length


def test_verify_holds_against_transformers(folder, capsys):
    code = main(["verify", str(folder), "--against", "transformers"])
    out = capsys.readouterr().out
    assert code == 0 and "in float64 (transformers" in out and "\nscores " in out, out
    assert "another tokenizer" not in out


CHAT_TEMPLATE = """
{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}
{%- set document = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note \
that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: INSTRUCTION
<Query>: {{ query }}
<Document>: {{ document }}<|im_end|>
<|im_start|>assistant
<think>

</think>

{# the newlines above stay #}"""


def test_sentence_transformers_gives_the_same(tmp_path, folder):
    """From the same files, with a chat template: CrossEncoder takes the prompt from there."""
    from sentence_transformers import CrossEncoder

    shutil.copytree(folder, tmp_path / "m", copy_function=lambda a, b: Path(b).symlink_to(a))
    (tmp_path / "m" / "chat_template.jinja").unlink(missing_ok=True)  # a link, or it would be written through
    (tmp_path / "m" / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("INSTRUCTION", INSTRUCTION))
    peer = CrossEncoder(str(tmp_path / "m"), device="cpu", model_kwargs={"dtype": torch.float32})
    model = Reranker(folder, matmul_precision="highest")
    raw = model.predict(PAIRS, raw_scores=True)
    scale = np.abs(model.logits(model.backend.forward(model.tokenize(PAIRS)))).max()
    for size in (1, 32):
        theirs = peer.predict(PAIRS, batch_size=size, activation_fn=torch.nn.Identity())
        np.testing.assert_allclose(raw, theirs, atol=2e-5 * scale)
    np.testing.assert_allclose(model.predict(PAIRS), peer.predict(PAIRS), atol=2e-5 * scale)
    query, documents = published.PLANET_QUERY, published.PLANET_DOCUMENTS
    ours, theirs = (m.rank(query, documents, top_k=3, return_documents=True) for m in (model, peer))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert (mine["corpus_id"], mine["text"]) == (other["corpus_id"], other["text"])
    one = peer.predict(PAIRS[0])
    assert np.ndim(model.predict(PAIRS[0])) == np.ndim(one)
