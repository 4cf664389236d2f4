"""sentence-transformers' names: what changes no vector is accepted, what does is refused with the cure.

Settings are checked when they are set.
"""

from __future__ import annotations

import inspect
import json
import shutil

import numpy as np
import pytest

from qwen3np import Embedder, Reranker
from qwen3np.interface.drop_in import CURES

TEXTS = ["a", "The capital of China is Beijing.", "中国"]
PAIRS = [("q", text) for text in TEXTS]


@pytest.fixture(scope="module")
def embedder(tiny) -> Embedder:
    return Embedder(tiny, backend="numpy")


@pytest.fixture(scope="module")
def reranker(tiny_reranker) -> Reranker:
    return Reranker(tiny_reranker, backend="numpy")


@pytest.fixture(params=["embedder", "reranker"])
def model(request) -> Embedder | Reranker:
    return request.getfixturevalue(request.param)


class Dtype:
    """As PyTorch's are written."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"


def test_the_model_cards_constructor(tiny):
    """Word for word, but for the name of the model."""
    model = Embedder(
        str(tiny),
        model_kwargs={"attn_implementation": "flash_attention_2", "device_map": "auto"},
        tokenizer_kwargs={"padding_side": "left"},
        backend="numpy",
    )
    assert model.encode(["a"], prompt_name="query").shape == (1, 96)


@pytest.mark.parametrize(
    "arguments",
    [
        {
            "device": "cpu",
            "trust_remote_code": True,
            "local_files_only": True,
            "revision": None,
            "token": False,
        },
        {
            "model_kwargs": {"dtype": "float32"},
            "processor_kwargs": {"padding_side": "right", "use_fast": True},
        },
        {
            "model_kwargs": {
                "torch_dtype": Dtype("float32"),
                "low_cpu_mem_usage": True,
                "device_map": {"": "cpu"},
            }
        },
        {"model_kwargs": {"torch_dtype": "auto", "attn_implementation": "sdpa"}, "config_kwargs": None},
        {"use_auth_token": None, "cache_dir": None, "model_card_data": object(), "modules": None},
    ],
)
def test_what_changes_no_vector_is_accepted(tiny, tiny_reranker, embedder, arguments):
    Reranker(tiny_reranker, backend="numpy", **arguments)
    other = Embedder(tiny, backend="numpy", **arguments)
    np.testing.assert_array_equal(other.encode(TEXTS), embedder.encode(TEXTS))


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"model_kwargs": {"dtype": "bfloat16"}}, "matmul_precision="),
        ({"model_kwargs": {"torch_dtype": Dtype("float16")}}, "matmul_precision="),
        ({"model_kwargs": {"load_in_8bit": True}}, "matmul_precision"),
        ({"model_kwargs": {"device_map": "cuda"}}, "runs on the CPU"),
        ({"model_kwargs": {"rope_scaling": {}}}, "num_threads=... are what can be set"),
        ({"model_kwargs": 3}, "model_kwargs is int, expected a dict"),
        ({"device": "cuda"}, "runs on the CPU; num_threads"),
        ({"tokenizer_kwargs": {"truncation_side": "left"}}, "cut at its end"),
        ({"tokenizer_kwargs": {"max_length": 8}}, "model_max_length"),
        ({"config_kwargs": {"num_hidden_layers": 1}}, "a changed copy of config.json"),
        ({"modules": []}, "modules.json is what is computed"),
        ({"num_labels": 3}, "one score per pair"),
        ({"trust_remote_cod": True}, "unknown argument 'trust_remote_cod'; did you mean 'trust_remote_code'"),
        ({"xyz": 1}, "unknown argument 'xyz'$"),
    ],
)
def test_what_can_change_a_vector_is_refused_with_the_cure(tiny, tiny_reranker, arguments, cure):
    for kind, folder in ((Embedder, tiny), (Reranker, tiny_reranker)):
        with pytest.raises(TypeError, match=f"^{kind.__name__}: .*{cure}"):
            kind(folder, backend="numpy", **arguments)


def test_calls_take_sentence_transformers_arguments(embedder, reranker):
    expected = embedder.encode(TEXTS)
    for arguments in (
        {"device": "cpu", "pool": None, "chunk_size": 10, "batch_size": np.int64(2), "task": "query"},
        {"convert_to_numpy": True, "convert_to_tensor": False, "precision": None, "device": ["cpu", "cpu"]},
    ):
        np.testing.assert_array_equal(embedder.encode(TEXTS, **arguments), expected)
    np.testing.assert_array_equal(embedder.encode(sentences=TEXTS), expected)
    np.testing.assert_array_equal(embedder.encode_document(sentences=TEXTS), expected)
    np.testing.assert_array_equal(
        embedder.encode(TEXTS, truncate_dim=np.int32(40)), embedder.encode(TEXTS, truncate_dim=40)
    )
    scores = reranker.predict(PAIRS)
    arguments = {"num_workers": 0, "apply_softmax": True, "convert_to_numpy": True, "chunk_size": 5}
    np.testing.assert_array_equal(reranker.predict(sentences=PAIRS, **arguments), scores)
    ranked = reranker.rank("q", TEXTS, np.int64(2), True, num_workers=0, device="cpu")
    assert [entry["score"] for entry in ranked] == sorted(scores.tolist(), reverse=True)[:2]
    with pytest.raises(TypeError, match="encode: unknown argument 'promt_name'; did you mean"):
        embedder.encode(TEXTS, promt_name="query")
    with pytest.raises(TypeError, match="encode: sentences is an older name of inputs, which is given too"):
        embedder.encode(TEXTS, sentences=TEXTS)
    with pytest.raises(TypeError, match="inputs is NoneType"):
        embedder.encode()


def test_prompts_of_a_reranker_are_instructions(tiny_reranker, reranker):
    """`prompt` wins over `prompt_name`, that over the default; an empty one is none."""
    expected = reranker.predict(PAIRS, instruction="Find the law")
    model = Reranker(tiny_reranker, backend="numpy", prompts={"law": "Find the law", "none": ""})
    for arguments in (
        {"prompt": "Find the law"},
        {"prompt_name": "law"},
        {"prompt": "Find the law", "prompt_name": "none"},
    ):
        np.testing.assert_array_equal(model.predict(PAIRS, **arguments), expected)
        assert model.tokenize(PAIRS, **arguments) == reranker.tokenize(PAIRS, instruction="Find the law")
        assert model.rank("q", TEXTS, **arguments) == reranker.rank("q", TEXTS, instruction="Find the law")
    for arguments in ({}, {"prompt": ""}, {"prompt_name": "none"}):
        np.testing.assert_array_equal(model.predict(PAIRS, **arguments), reranker.predict(PAIRS))
    model.default_prompt_name = "law"
    np.testing.assert_array_equal(model.predict(PAIRS), expected)
    with pytest.raises(ValueError, match=r"prompt name 'x' is not one of \['law', 'none'\]"):
        model.predict(PAIRS, prompt_name="x")
    with pytest.raises(ValueError, match="two names of one thing"):
        model.predict(PAIRS, prompt="a", instruction="b")


def test_the_activation_can_be_set(tiny_reranker, reranker):
    raw = reranker.predict(PAIRS, raw_scores=True)
    model = Reranker(tiny_reranker, backend="numpy", activation_fn=lambda x: 2 * x)
    np.testing.assert_array_equal(model.predict(PAIRS), 2 * raw)
    np.testing.assert_array_equal(model.predict(PAIRS, activation_fn=None), 2 * raw)
    model.activation_fn = None
    np.testing.assert_array_equal(model.predict(PAIRS), reranker.predict(PAIRS))
    with pytest.raises(TypeError, match="activation_fn is int 3"):
        model.activation_fn = 3


SETTINGS = [
    ("embedder", "max_seq_length", (8, np.int64(8)), (0, -1, 32769, 1.5, "x", True), ValueError),
    ("embedder", "truncate_dim", (40, np.int32(40), None), (31, 97, 40.0, "40", True), ValueError),
    ("embedder", "similarity_fn_name", ("dot", None), ("nonsense",), ValueError),
    ("embedder", "prompts", ({"query": "Q:"}, {}), ({"query": 3}, "Q:", {1: "a"}), TypeError),
    ("embedder", "default_prompt_name", ("query", None), ("quary", ""), ValueError),
    ("reranker", "max_length", (200, np.int64(200), None), (20, 40961, 100.5, "x", True), ValueError),
    ("reranker", "max_seq_length", (200,), (20,), ValueError),
    ("reranker", "instruction", ("Find the law", ""), (None, 3), TypeError),
    ("reranker", "prompts", ({"law": "Find the law"},), ({"law": None}, ["law"]), TypeError),
]


@pytest.mark.parametrize(("which", "name", "good", "bad", "error"), SETTINGS)
def test_settings_are_checked_when_they_are_set(tiny, tiny_reranker, which, name, good, bad, error):
    """With the constructor's errors; a refused value changes nothing."""
    folder, kind = (tiny, Embedder) if which == "embedder" else (tiny_reranker, Reranker)
    model = kind(folder, backend="numpy")
    for value in good:
        setattr(model, name, value)
        if value is not None:
            assert getattr(model, name) == value
    before = getattr(model, name)
    for value in bad:
        with pytest.raises(error, match=f"{name}|similarity|prompt"):
            setattr(model, name, value)
        assert getattr(model, name) == before
    if name not in ("max_seq_length", "instruction", "prompts", "default_prompt_name"):
        with pytest.raises(error):
            kind(folder, backend="numpy", **{name: bad[0]})


def test_what_is_set_is_used(tiny):
    model = Embedder(tiny, backend="numpy", tokenizer_kwargs={"model_max_length": 6})
    assert model.max_seq_length == model.get_max_seq_length() == 6
    model.max_seq_length = 4
    assert [len(ids) for ids in model.tokenize("a b c d e f")] == [4]
    with model.truncate_embeddings(32):
        assert model.encode("a").shape == (32,) and model.get_sentence_embedding_dimension() == 32
    assert model.encode("a").shape == (96,)
    model.prompts = {"query": "Q:"}
    np.testing.assert_array_equal(model.encode_query("a"), model.encode("Q:a"))
    model.default_prompt_name = "query"
    with pytest.raises(ValueError, match="'query' is not one of"):
        model.prompts = {"document": ""}


def test_a_model_is_where_it_is_and_as_it_is(model):
    """The calls that scripts chain behind the constructor."""
    assert model.to("cpu").eval().train(False).cpu().float().to(model.device) is model
    assert str(model.device) == "cpu" == model.device.type and model.dtype == np.float32
    assert model.requires_grad_(False) is model and model.compile(dynamic=True) is None
    assert model.modalities == ["text"] and model.supports("text") and not model.supports("image")
    for call in (lambda: model.to("cuda"), lambda: model.to(Dtype("bfloat16")), lambda: model.train()):
        with pytest.raises(TypeError, match="runs on the CPU alone|does not train"):
            call()


def test_names_that_are_not_there_say_what_to_do(model):
    kind = type(model).__name__
    for name, cure in (
        ("cuda", "runs on the CPU alone"),
        ("half", "matmul_precision"),
        ("fit", "train with sentence-transformers"),
        ("start_multi_process_pool", "num_threads"),
        ("push_to_hub", "upload_folder"),
        ("load_adapter", "merge_and_unload"),
        ("state_dict", "checkpoint.tensors"),
    ):
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=f"{kind} has no '{name}': .*{cure}"):
            getattr(model, name)
    with pytest.raises(AttributeError, match="did you mean 'max_seq_length'"):
        _ = model.max_seq_lenght
    with pytest.raises(AttributeError, match=f"{kind} has no 'qqq'$"):
        _ = model.qqq
    with pytest.raises(AttributeError, match="object has no attribute '__wrapped__'"):
        _ = model.__wrapped__


def test_a_saved_model_gives_the_same_vectors(tiny, tmp_path):
    """With the settings it has by then; nothing that is there is written over."""
    model = Embedder(tiny, backend="numpy", max_seq_length=6, prompts={"query": "Q:", "law": "L:"})
    model.similarity_fn_name, model.default_prompt_name = "dot", "law"
    model.save_pretrained(tmp_path / "a" / "saved", safe_serialization=True)
    saved = Embedder(tmp_path / "a" / "saved", backend="numpy")
    assert (saved.max_seq_length, saved.similarity_fn_name, saved.prompts) == (6, "dot", model.prompts)
    np.testing.assert_array_equal(saved.encode(TEXTS), model.encode(TEXTS))
    np.testing.assert_array_equal(saved.encode_query(TEXTS), model.encode_query(TEXTS))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["saved"]
    (tmp_path / "empty").mkdir()
    model.save(str(tmp_path / "empty"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "mine", tmp_path / "file", tmp_path / "link", tiny, tmp_path / "empty"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FileExistsError, match="a model is saved to a new folder, or an empty one"):
            model.save(path)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="lies in the folder that is to be copied"):
        model.save(tiny / "copy")


def test_a_copy_that_fails_leaves_nothing(embedder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qwen3np.interface.copies.load_json", full)  # the weights are copied by then
    with pytest.raises(OSError, match="No space left"):
        embedder.save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_saved_reranker_keeps_its_prompts(tiny_reranker, tmp_path):
    model = Reranker(tiny_reranker, backend="numpy", prompts={"law": "Find the law"})
    model.save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "config_sentence_transformers.json").read_text("utf-8"))
    assert settings["prompts"] == {"law": "Find the law"}
    np.testing.assert_array_equal(
        Reranker(tmp_path / "saved", backend="numpy").predict(PAIRS, prompt="x"),
        model.predict(PAIRS, prompt="x"),
    )


# ---- live: sentence-transformers' own names, arguments and values


def peers():
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the extra hf")
    return sentence_transformers.SentenceTransformer, sentence_transformers.CrossEncoder


@pytest.mark.hf
def test_every_public_name_is_served_or_refused_with_a_cure(embedder, reranker):
    for model, peer in zip((embedder, reranker), peers(), strict=True):
        names = [name for name in dir(peer) if not name.startswith("_")]
        served = [name for name in names if hasattr(model, name)]
        print(f"\n{peer.__name__}: {len(served)} of {len(names)} served:", *served)
        for name in sorted(set(names) - set(served)):
            assert name in CURES, name
            with pytest.raises(AttributeError, match=f"has no '{name}': .+"):
                getattr(model, name)


@pytest.mark.hf
def test_arguments_stand_where_theirs_do(tiny, tiny_reranker, embedder, reranker):
    """In the same order, and each of theirs is taken, at its default."""
    sentence_transformer, cross_encoder = peers()
    for model, peer, calls in (
        (
            embedder,
            sentence_transformer,
            ("encode", "similarity", "similarity_pairwise", "truncate_embeddings"),
        ),
        (reranker, cross_encoder, ("predict", "rank")),
    ):
        for call in calls:
            theirs = list(inspect.signature(getattr(peer, call)).parameters)[1:]
            ours = list(inspect.signature(getattr(model, call)).parameters)
            theirs = [name for name in theirs if name != "kwargs"]
            assert ours[: len(theirs)] == theirs, call
    for kind, folder, peer in (
        (Embedder, tiny, sentence_transformer),
        (Reranker, tiny_reranker, cross_encoder),
    ):
        parameters = list(inspect.signature(peer.__init__).parameters.values())[2:]
        defaults = {p.name: p.default for p in parameters if p.name != "backend"}
        kind(str(folder), backend="numpy", **defaults)


@pytest.mark.hf
def test_positional_calls_and_prompts_give_their_vectors(tiny):
    import torch

    peer_kind, _ = peers()
    settings = {"prompts": {"passage": "P:", "query": "Q:"}, "default_prompt_name": "passage"}
    peer = peer_kind(str(tiny), device="cpu", model_kwargs={"dtype": torch.float32}, **settings)
    model = Embedder(tiny, backend="numpy", device=torch.device("cpu"), **settings)
    assert model.prompts == peer.prompts
    inputs = (TEXTS, TEXTS[0], {"text": "a"}, [{"text": text} for text in TEXTS], np.array(TEXTS))
    for call in ("encode", "encode_query", "encode_document"):
        for texts in inputs:
            ours, theirs = (getattr(m, call)(texts) for m in (model, peer))
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=2e-6, err_msg=f"{call} {texts}")
        arguments = (
            TEXTS,
            None,
            "x: ",
            2,
            False,
            "sentence_embedding",
            "float32",
            True,
            False,
            None,
            True,
            32,
        )
        ours, theirs = (getattr(m, call)(*arguments) for m in (model, peer))
        np.testing.assert_allclose(ours, theirs, atol=2e-6, err_msg=call)


@pytest.mark.hf
def test_prompts_and_activations_give_their_scores(tiny_reranker, tmp_path):
    """By a chat template that takes the system's message, which a prompt becomes, as the instruction."""
    import torch

    _, peer_kind = peers()
    folder = shutil.copytree(tiny_reranker, tmp_path / "m")
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    settings = {"prompts": {"law": "Find the law", "none": ""}}
    peer = peer_kind(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, **settings)
    model = Reranker(folder, backend="numpy", **settings)
    prompts = (
        {},
        {"prompt": "Find the law"},
        {"prompt_name": "law"},
        {"prompt_name": "none"},
        {"prompt": ""},
    )
    functions = (None, torch.nn.Sigmoid(), torch.nn.Identity())
    for arguments in (
        *prompts,
        {"prompt": "x", "prompt_name": "law"},
        *({"activation_fn": f} for f in functions),
    ):
        ours, theirs = (m.predict(PAIRS, **arguments) for m in (model, peer))
        np.testing.assert_allclose(
            ours, theirs, atol=2e-5 * max(1, np.abs(theirs).max()), err_msg=str(arguments)
        )
    positional = (PAIRS, "law", None, 2, False, None, False, True, False)
    np.testing.assert_allclose(model.predict(*positional), peer.predict(*positional), atol=2e-5)
    ours, theirs = (m.rank("q", TEXTS, 2, True, "law", None, 2) for m in (model, peer))
    assert [(r["corpus_id"], r["text"]) for r in ours] == [(r["corpus_id"], r["text"]) for r in theirs]
