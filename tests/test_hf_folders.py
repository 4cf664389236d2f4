"""Side files of folders: sentence-transformers' vectors, or a refusal of what is not computed."""

from __future__ import annotations

import fnmatch
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3np import CheckpointError, Embedder, Reranker
from qwen3np.loading import model_cards
from qwen3np.loading.folder import MEANINGLESS, USED

pytestmark = pytest.mark.hf

torch = pytest.importorskip("torch", reason='the live comparison needs the extra: pip install ".[hf]"')

TEXTS = [
    "What is the capital of China?",
    "A second, longer TEXT with <|im_end|> and <new> in it, and  spaces\n",
    "中国的首都是北京。<|endoftext|>",
    "word " * 40,
]
EQUAL = "equal"
Change = Callable[[Path], None]


def settings(name: str, **changes: Any) -> Change:
    """Changes keys of a JSON file; a key that is given None is taken out of it."""

    def change(folder: Path) -> None:
        path = folder / name
        raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.parent.mkdir(exist_ok=True)
        raw = {key: value for key, value in {**raw, **changes}.items() if value is not None}
        path.write_text(json.dumps(raw), encoding="utf-8")

    return change


def content(name: str, value: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")

    return change


def without(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def all_of(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def ends_with(*tokens: str, begins_with: tuple[str, ...] = ()) -> Change:
    """A post-processor that puts these tokens around a text."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        ids = {token["content"]: token["id"] for token in raw["added_tokens"]}
        text = [{"Sequence": {"id": "A", "type_id": 0}}]
        before, after = (
            [{"SpecialToken": {"id": t, "type_id": 0}} for t in some] for some in (begins_with, tokens)
        )
        raw["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [*before, *text, *after],
            "pair": [*text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in {*tokens, *begins_with}},
        }
        content("tokenizer.json", raw)(folder)

    return change


def transformer_in(name: str) -> Change:
    """The Transformer in a folder of its own, and another model's files where it was."""

    def change(folder: Path) -> None:
        (folder / name).mkdir()
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folder / file, folder / name / file)
        tensors = load_file_bits(folder / name / "model.safetensors")
        tensors["layers.0.mlp.down_proj.weight"] = -tensors["layers.0.mlp.down_proj.weight"]
        save_bits(tensors, folder / name / "model.safetensors")
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = name
        content("modules.json", modules)(folder)

    return change


def load_file_bits(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def save_bits(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    path.unlink()  # not overwritten: the old file may be mapped
    save_file(tensors, path, metadata={"format": "pt"})


def renamed(prefix: str, **more: bool) -> Change:
    """Tensors as a causal model has them, with a head of its own."""

    def change(folder: Path) -> None:
        tensors = {prefix + k: v for k, v in load_file_bits(folder / "model.safetensors").items()}
        if more.get("lm_head"):
            embed = next(t for name, t in tensors.items() if name.endswith("embed_tokens.weight"))
            tensors["lm_head.weight"] = -embed
        save_bits(tensors, folder / "model.safetensors")

    return change


MODULES = "sentence_transformers.models."
TRANSFORMER, POOLING, NORMALIZE = (
    {"idx": i, "name": str(i), "path": path, "type": MODULES + kind}
    for i, (kind, path) in enumerate(
        [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    )
)
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
SENTENCE, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
ADDED = [
    {"content": c, "special": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": not s}
    for c, s in (
        ("<|endoftext|>", True),
        ("<|im_start|>", True),
        ("<|im_end|>", True),
        ("<think>", False),
        ("</think>", False),
    )
]
DECODER = {str(1995 + i): token for i, token in enumerate(ADDED)}
NEW = {**ADDED[0], "content": "<new>"}
WIDE = {"pooling_mode": "lasttoken", "embedding_dimension": 96, "include_prompt": True}

# Name: (what is changed, "equal" or words of the refusal).
VARIANTS: dict[str, tuple[Change, str]] = {
    "as it is": (all_of(), EQUAL),
    # The tokens around a text
    "nothing is appended": (settings(TOKENIZER, post_processor=None), EQUAL),
    "byte-level post-processor": (
        settings(
            TOKENIZER,
            post_processor={
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": False,
            },
        ),
        EQUAL,
    ),
    "another token is appended": (ends_with("<|im_end|>"), EQUAL),
    "two tokens are appended": (ends_with("<|im_end|>", "<|endoftext|>"), EQUAL),
    "a token stands in front": (ends_with("<|endoftext|>", begins_with=("<|im_start|>",)), EQUAL),
    "add_eos_token": (settings(TOKENIZER_CONFIG, add_eos_token=True, add_bos_token=False), EQUAL),
    "add_eos_token, nothing appended": (
        all_of(settings(TOKENIZER, post_processor=None), settings(TOKENIZER_CONFIG, add_eos_token=True)),
        EQUAL,
    ),
    # Added tokens
    "additional_special_tokens": (settings(TOKENIZER_CONFIG, additional_special_tokens=["<new>"]), EQUAL),
    "extra_special_tokens": (settings(TOKENIZER_CONFIG, extra_special_tokens=["<new>", "<|im_end|>"]), EQUAL),
    "extra_special_tokens by name": (settings(TOKENIZER_CONFIG, extra_special_tokens={"x": "<new>"}), EQUAL),
    "a named token": (settings(TOKENIZER_CONFIG, image_token="<new>"), EQUAL),
    "another pad token": (settings(TOKENIZER_CONFIG, pad_token="<new>"), EQUAL),
    "added_tokens.json": (content("added_tokens.json", {"<new>": 2000}), EQUAL),
    "added_tokens.json, another id": (content("added_tokens.json", {"<new>": 2003}), "<new> has id 2003"),
    "special_tokens_map.json": (
        content("special_tokens_map.json", {"additional_special_tokens": ["<new>"]}),
        EQUAL,
    ),
    "special_tokens_map.json, overruled": (
        all_of(
            content("special_tokens_map.json", {"additional_special_tokens": ["<new>"]}),
            settings(TOKENIZER_CONFIG, added_tokens_decoder=DECODER),
        ),
        EQUAL,
    ),
    "added_tokens_decoder": (
        settings(TOKENIZER_CONFIG, added_tokens_decoder={**DECODER, "2000": NEW}),
        EQUAL,
    ),
    "added_tokens_decoder that lacks some": (
        settings(TOKENIZER_CONFIG, added_tokens_decoder=dict(list(DECODER.items())[:2])),
        EQUAL,
    ),
    "added_tokens_decoder with other flags": (
        settings(TOKENIZER_CONFIG, added_tokens_decoder={**DECODER, "1997": {**ADDED[2], "lstrip": True}}),
        EQUAL,
    ),
    "split_special_tokens": (
        settings(TOKENIZER_CONFIG, split_special_tokens=True),
        "split_special_tokens = True",
    ),
    # Length and side
    "model_max_length": (settings(TOKENIZER_CONFIG, model_max_length=16), EQUAL),
    "model_max_length without limit": (settings(TOKENIZER_CONFIG, model_max_length=int(1e30)), EQUAL),
    "max_seq_length": (content(SENTENCE, {"max_seq_length": 12, "do_lower_case": False}), EQUAL),
    "max_seq_length over model_max_length": (
        all_of(content(SENTENCE, {"max_seq_length": 20}), settings(TOKENIZER_CONFIG, model_max_length=16)),
        EQUAL,
    ),
    "max_seq_length over all positions": (content(SENTENCE, {"max_seq_length": 40000}), EQUAL),
    "truncation_side": (settings(TOKENIZER_CONFIG, truncation_side="left", model_max_length=16), EQUAL),
    "truncation saved in tokenizer.json": (
        all_of(
            settings(
                TOKENIZER,
                truncation={"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
            ),
            settings(TOKENIZER_CONFIG, model_max_length=16),
        ),
        EQUAL,
    ),
    "padding_side": (settings(TOKENIZER_CONFIG, padding_side="left"), EQUAL),
    # What is done to a text first
    "do_lower_case": (content(SENTENCE, {"max_seq_length": 64, "do_lower_case": True}), EQUAL),
    "an older name of the file": (content("sentence_roberta_config.json", {"max_seq_length": 9}), EQUAL),
    "another normaliser": (settings(TOKENIZER, normalizer={"type": "NFKC"}), "its normalizer is not Qwen's"),
    "another normaliser, tokenizer.json as it is": (
        all_of(
            settings(TOKENIZER, normalizer={"type": "Lowercase"}),
            settings(TOKENIZER_CONFIG, tokenizer_class="PreTrainedTokenizerFast"),
        ),
        EQUAL,
    ),
    "add_prefix_space": (settings(TOKENIZER_CONFIG, add_prefix_space=True), "add_prefix_space = True"),
    "another tokenizer's class": (
        settings(TOKENIZER_CONFIG, tokenizer_class="BertTokenizer"),
        "tokenizer_class = 'BertTokenizer'",
    ),
    "no tokenizer_config.json": (without(TOKENIZER_CONFIG), EQUAL),
    "a chat template": (content("chat_template.jinja", "{{ messages[0].content }}!"), EQUAL),
    # Prompts and results
    "prompts": (settings(PROMPTS, prompts={"query": "q: ", "passage": "p: "}), EQUAL),
    "a default prompt": (settings(PROMPTS, prompts={"s": "STS: "}, default_prompt_name="s"), EQUAL),
    "no prompts": (content(PROMPTS, {}), EQUAL),
    "truncate_dim": (settings(PROMPTS, truncate_dim=64), "equal once normalised"),
    "saved by sentence-transformers 6": (
        settings(PROMPTS, model_type="SentenceTransformer", __version__={"sentence_transformers": "6.0.0"}),
        EQUAL,
    ),
    # Modules
    "no Normalize": (content("modules.json", [TRANSFORMER, POOLING]), EQUAL),
    "newer module paths": (
        content(
            "modules.json",
            [
                {**TRANSFORMER, "type": "sentence_transformers.base.modules.transformer.Transformer"},
                {**POOLING, "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
                {**NORMALIZE, "type": "sentence_transformers.base.modules.normalize.Normalize"},
            ],
        ),
        EQUAL,
    ),
    "newer pooling file": (content("1_Pooling/config.json", WIDE), EQUAL),
    "a Transformer with a path": (transformer_in("0_Transformer"), EQUAL),
    "mean pooling": (content("1_Pooling/config.json", {**WIDE, "pooling_mode": "mean"}), "pooling mode mean"),
    "a prompt left out": (
        content("1_Pooling/config.json", {**WIDE, "include_prompt": False}),
        "include_prompt = False",
    ),
    "a width of another model": (
        content("1_Pooling/config.json", {**WIDE, "embedding_dimension": 64}),
        "embedding_dimension is 64",
    ),
    "code of its own": (
        content("modules.json", [{**TRANSFORMER, "type": "my.Transformer"}, POOLING]),
        "code of the model's own",
    ),
    "normalised tokens": (
        content("2_Normalize/config.json", {"module_input_name": "token_embeddings"}),
        "module_input_name = 'token_embeddings'",
    ),
    # config.json and weights
    "keys nobody knows": (
        settings(CONFIG, unsloth_fixed=True, _attn_implementation_autoset=True, my_key=1),
        EQUAL,
    ),
    "a window that is not used": (settings(CONFIG, sliding_window=2, use_sliding_window=False), EQUAL),
    "a window for later layers": (
        settings(CONFIG, sliding_window=2, use_sliding_window=True, max_window_layers=9),
        EQUAL,
    ),
    "a window": (
        settings(CONFIG, sliding_window=2, use_sliding_window=True, max_window_layers=1),
        "use_sliding_window",
    ),
    "not causal": (settings(CONFIG, is_causal=False), "is_causal = false"),
    "YaRN": (settings(CONFIG, rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope_scaling"),
    "rope_parameters": (
        settings(
            CONFIG,
            rope_theta=None,
            rope_scaling=None,
            rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
        ),
        EQUAL,
    ),
    "tensors of a causal model": (renamed("model."), EQUAL),
    "a head of its own, tied": (renamed("model.", lm_head=True), EQUAL),
    "an adapter": (content("adapter_config.json", {"peft_type": "LORA"}), "merge it first"),
    "a processor": (
        content("processor_config.json", {"processor_class": "Qwen3VLProcessor"}),
        "processor_class",
    ),
    "generation_config.json": (
        content("generation_config.json", {"eos_token_id": 1997, "temperature": 0.1}),
        EQUAL,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_gives_sentence_transformers_vectors_or_is_refused(tiny_copy, name, caplog):
    from sentence_transformers import SentenceTransformer

    change, expected = VARIANTS[name]
    change(tiny_copy)
    if not expected.startswith(EQUAL):
        with pytest.raises(CheckpointError) as caught:
            Embedder(tiny_copy)
        assert expected in str(caught.value)
        return
    model = Embedder(tiny_copy, matmul_precision="highest")
    assert not [r for r in caplog.records if r.name == "qwen3np" and r.levelno >= logging.WARNING]
    peer = SentenceTransformer(str(tiny_copy), device="cpu", model_kwargs={"dtype": torch.float32})
    assert model.max_seq_length == peer.max_seq_length
    for text in TEXTS:
        for prompt, theirs in (("", text), (model.prompts["query"], model.prompts["query"] + text)):
            assert model.tokenize(text, prompt=prompt) == peer.preprocess([theirs])["input_ids"].tolist()
    for method in ("encode", "encode_query", "encode_document"):
        arguments = {"normalize_embeddings": True} if expected != EQUAL else {}
        ours, theirs = (getattr(m, method)(TEXTS, **arguments) for m in (model, peer))
        scale = max(1, np.abs(theirs).max())
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=2e-6, err_msg=method)


# ---- rerankers

PAIRS = [("which?", "this"), ("which?", "that one\n"), ("", ""), ("中国", "word " * 60)]
LAW = {"prompts": {"law": "Find the law"}, "default_prompt_name": "law", "model_type": "CrossEncoder"}
MESSAGES = {"method": "forward", "method_output_name": "logits"}


def template(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


RERANKERS: dict[str, tuple[Change, str]] = {
    "as it is": (all_of(), EQUAL),
    "an instruction as the default prompt": (content(PROMPTS, LAW), EQUAL),
    "prompts of another kind of model": (content(PROMPTS, {**LAW, "model_type": None}), EQUAL),
    "an instruction in the template": (template("Given a web search query", "Given a question"), EQUAL),
    "a length": (settings(SENTENCE, max_seq_length=210), EQUAL),
    "lower case": (settings(SENTENCE, do_lower_case=True), EQUAL),
    "other answers": (content("1_LogitScore/config.json", {"true_token_id": 7, "false_token_id": 9}), EQUAL),
    "a head of its own, tied": (renamed("", lm_head=True), EQUAL),
    "other words": (template("Judge", "Say"), "asks in other words"),
    "no message": (
        settings(SENTENCE, modality_config={"text": MESSAGES}),
        "puts no pair into the chat template",
    ),
    "one answer": (content("1_LogitScore/config.json", {"true_token_id": 7}), "must be two token ids"),
    "cut on the left": (settings(TOKENIZER_CONFIG, truncation_side="left"), "truncation_side = 'left'"),
}


@pytest.mark.parametrize("name", RERANKERS)
def test_a_reranker_gives_sentence_transformers_scores_or_is_refused(tiny_reranker, tmp_path, name):
    """Probabilities, which are its default too unless the folder's activation_fn says otherwise."""
    from sentence_transformers import CrossEncoder

    folder = Path(shutil.copytree(tiny_reranker, tmp_path / "reranker"))
    change, expected = RERANKERS[name]
    if name != "prompts of another kind of model":
        settings(PROMPTS, model_type="CrossEncoder")(folder)
    change(folder)
    if expected != EQUAL:
        with pytest.raises(CheckpointError) as caught:
            Reranker(folder)
        assert expected in str(caught.value)
        return
    model = Reranker(folder, matmul_precision="highest")
    if name == "prompts of another kind of model":  # sentence-transformers takes its answers by name, then
        assert model.instruction == model_cards.RERANKER_INSTRUCTION
        return
    peer = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    raw = model.predict(PAIRS, raw_scores=True)
    theirs = peer.predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(raw, theirs, atol=2e-5 * max(1, np.abs(theirs).max()))
    np.testing.assert_allclose(model.predict(PAIRS), peer.predict(PAIRS), atol=1e-4)


def test_a_sequence_classifier_gives_transformers_scores(tiny_reranker, tmp_path):
    """On the ids of the model card's conversation."""
    from transformers import AutoModelForSequenceClassification

    folder = Path(shutil.copytree(tiny_reranker, tmp_path / "reranker"))
    tensors = load_file_bits(folder / "model.safetensors")
    tensors["score.weight"] = torch.linspace(-1, 1, 96, dtype=torch.bfloat16)[None]
    save_bits(tensors, folder / "model.safetensors")
    without("modules.json", SENTENCE)(folder)
    settings(CONFIG, architectures=["Qwen3ForSequenceClassification"], num_labels=1, pad_token_id=1995)(
        folder
    )
    settings(
        TOKENIZER, post_processor={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    )(folder)
    model = Reranker(folder, matmul_precision="highest")
    peer = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, num_labels=1
    ).eval()
    with torch.no_grad():
        theirs = [peer(torch.tensor([ids])).logits[0, 0].item() for ids in model.tokenize(PAIRS)]
    np.testing.assert_allclose(model.predict(PAIRS, raw_scores=True), theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("tied", [True, False, None])
@pytest.mark.parametrize("stored", [True, False])
def test_the_head_is_transformers(tiny_reranker, tmp_path, tied, stored):
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_reranker, tmp_path / "reranker"))
    renamed("", lm_head=stored)(folder)
    settings(CONFIG, tie_word_embeddings=tied)(folder)
    if not (stored or tied):  # transformers makes up a random one
        with pytest.raises(CheckpointError, match="has no lm_head.weight"):
            Reranker(folder)
        return
    model = Reranker(folder, matmul_precision="highest")
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        last = [peer(torch.tensor([ids])).logits[0, -1].double() for ids in model.tokenize(PAIRS)]
    yes, no = model.answers
    theirs = torch.stack([x[yes] - x[no] for x in last]).numpy()
    ours = model.predict(PAIRS, raw_scores=True)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(torch.stack(last).numpy()).max())


def test_every_file_that_is_opened_is_in_the_table(tiny_copy, tiny_reranker, tmp_path):
    """By sentence-transformers and transformers, of a folder that has all that they look for."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    reranker = Path(shutil.copytree(tiny_reranker, tmp_path / "reranker"))
    opened: set[str] = set()
    folders: list[Path] = [tiny_copy, reranker]
    for folder in folders:
        for name in ("generation_config.json", "processor_config.json", "preprocessor_config.json", PROMPTS):
            settings(name)(folder)
        content("README.md", "A model.")(folder)
        content("special_tokens_map.json", {})(folder)
        content("added_tokens.json", {})(folder)
        content("vocab.json", {})(folder)
        content("merges.txt", "")(folder)
        content("2_Normalize/config.json", {})(folder)
    content("chat_template.jinja", "{{ messages[0].content }}")(tiny_copy)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and folders:
            for folder in folders:
                if arguments[0].startswith(f"{folder}/"):
                    opened.add(arguments[0].removeprefix(f"{folder}/"))

    sys.addaudithook(hook)
    try:
        settings(PROMPTS, model_type="CrossEncoder")(reranker)
        opened.clear()
        SentenceTransformer(str(tiny_copy), device="cpu").encode("a")
        CrossEncoder(str(reranker), device="cpu").predict([("a", "b")])
    finally:
        folders.clear()
    assert {"tokenizer.json", "modules.json", "1_LogitScore/config.json", "added_tokens.json"} <= opened
    table = [*USED, *MEANINGLESS]
    assert [name for name in sorted(opened) if not any(fnmatch.fnmatch(name, key) for key in table)] == []
