"""What is refused, one table for each way to provoke it: what the message names, and the cure.

Tables of what a parser refuses stand with its other tests: values of config.json in test_config.py, weight
files in test_checkpoint.py and test_damage.py, rows of input files and outputs in test_files.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwen3np import CheckpointError, Embedder, Reranker
from qwen3np.kernels import isa
from qwen3np.verify.report import verify

# ---- arguments


class Models(NamedTuple):
    """Two models, and their constructors with the folder filled in."""

    embedder: Embedder
    reranker: Reranker
    load_embedder: Callable[..., Embedder]
    load_reranker: Callable[..., Reranker]


@pytest.fixture(scope="module")
def models(tiny, tiny_reranker) -> Models:
    embedder, reranker = partial(Embedder, tiny), partial(Reranker, tiny_reranker)
    return Models(embedder(backend="numpy"), reranker(backend="numpy"), embedder, reranker)


PAIR = [("a", "b")]
NO_PAIR = "is not a pair of a query and a document"
ARGUMENTS: list[tuple[Callable[[Models], Any], type[Exception], str]] = [
    # Embedder
    (lambda m: m.load_embedder(backend="torch"), ValueError, "backend = 'torch'"),
    (lambda m: m.load_embedder(matmul_precision="lowest"), ValueError, "matmul_precision = 'lowest'"),
    (lambda m: m.load_embedder(num_threads=0), ValueError, "num_threads = 0 must be an integer of 1 or more"),
    (
        lambda m: m.load_embedder(similarity_fn_name="jaccard"),
        ValueError,
        "similarity 'jaccard' is not one of",
    ),
    (lambda m: m.load_embedder(prompts={}, default_prompt_name="quary"), ValueError, "'quary' is not one of"),
    (lambda m: m.load_embedder(model_kwargs={"torch_dtype": "bfloat16"}), TypeError, "matmul_precision"),
    (
        lambda m: m.embedder.encode("a", prompt_name="quary"),
        ValueError,
        "prompt name 'quary' is not one of ['document', 'query']",
    ),
    (lambda m: m.embedder.encode("a", prompt=3), TypeError, "prompt is int"),
    (lambda m: m.embedder.encode("a", instruction=3), TypeError, "instruction is int"),
    (lambda m: m.embedder.encode("a", prompt="a", instruction="b"), ValueError, "give one"),
    (lambda m: m.embedder.encode(["a", 3]), TypeError, "text 1 is int"),
    (lambda m: m.embedder.encode(), TypeError, "inputs is NoneType"),
    (
        lambda m: m.embedder.encode("a", output_value="tokens"),
        ValueError,
        "output_value 'tokens' is not one of",
    ),
    (lambda m: m.embedder.encode("a", precision="int4"), ValueError, "precision 'int4' is not one of"),
    (
        lambda m: m.embedder.encode("a", promt_name="query"),
        TypeError,
        "encode: unknown argument 'promt_name'; did you mean",
    ),
    (
        lambda m: m.embedder.encode("a", sentences="a"),
        TypeError,
        "encode: sentences is an older name of inputs, which is given too",
    ),
    (lambda m: next(m.embedder.encode_stream("text")), TypeError, "found one str"),
    (lambda m: next(m.embedder.encode_stream(["a"], chunk_size=0)), ValueError, "chunk_size"),
    (
        lambda m: m.embedder.similarity(*(m.embedder.encode(["a"], truncate_dim=d) for d in (96, 95))),
        ValueError,
        "96 and of 95",
    ),
    *(
        (partial(call, value=value), ValueError, f"truncate_dim = {value!r} must be between 32 and 96")
        for value in (31, 0, -1, 97, 40.0, "40", True)
        for call in (
            lambda m, value: m.load_embedder(truncate_dim=value),
            lambda m, value: m.embedder.encode("a", truncate_dim=value),
        )
    ),
    *(
        (partial(call, value=value), ValueError, "batch_size must be a positive integer")
        for value in (0, -1, 2.5, "1")
        for call in (
            lambda m, value: m.embedder.encode(["a"], batch_size=value),
            lambda m, value: m.reranker.predict(PAIR, batch_size=value),
        )
    ),
    *(
        (lambda m, value=value: m.load_embedder(max_seq_length=value), ValueError, "max_seq_length")
        for value in (0, 32769, 1.5)
    ),
    # What PyTorch would be needed for.
    *(
        (partial(call, arguments=arguments), TypeError, cure)
        for arguments, cure in (
            ({"convert_to_tensor": True}, "torch.from_numpy"),
            ({"convert_to_numpy": False}, "torch.from_numpy"),
            ({"device": "cuda"}, "num_threads"),
            ({"pool": {}}, "num_threads"),
        )
        for call in (
            lambda m, arguments: m.embedder.encode("a", **arguments),
            lambda m, arguments: m.reranker.predict(PAIR, **arguments),
        )
    ),
    # Reranker
    *(
        (lambda m, value=value: m.load_reranker(max_length=value), ValueError, "max_length")
        for value in (20, 40961, 100.5)
    ),
    *(
        (lambda m, inputs=inputs: m.reranker.predict(inputs()), error, message)
        for inputs, error, message in (
            (lambda: ["abc"], TypeError, "input 0 is not a pair"),
            (lambda: [("a", "b", "c")], TypeError, "input 0 is not a pair"),
            (lambda: [("a", 3)], TypeError, "the document of pair 0 is int"),
            (lambda: [("a", "b"), (None, "b")], TypeError, "the query of pair 1 is NoneType"),
            (lambda: "ab", TypeError, "inputs must be pairs of a query and a document, found str 'ab'"),
            (lambda: {"a": "b"}, TypeError, "inputs must be pairs of a query and a document, found dict"),
            (lambda: [{"query": "a", "document": "b"}], TypeError, f"input 0 {NO_PAIR}: dict"),
            (lambda: [5], TypeError, f"input 0 {NO_PAIR}: int 5"),
            (lambda: [("a", "b"), {"a", "c"}], TypeError, f"input 1 {NO_PAIR}: set"),
            (lambda: [(x for x in "ab")], TypeError, f"input 0 {NO_PAIR}: generator"),
            (lambda: [("a", "\ud800")], ValueError, "the document of pair 0 is not valid Unicode"),
        )
    ),
    (lambda m: m.reranker.predict(PAIR, instruction=3), TypeError, "instruction is int"),
    (lambda m: m.reranker.rank("a", "b"), TypeError, "documents must be a list of texts, found str 'b'"),
    (lambda m: m.reranker.rank("a", ["b"], top_k=0), ValueError, "top_k"),
    (lambda m: m.reranker.rank(None, ["a"]), TypeError, "query is NoneType, expected str"),
    (lambda m: m.reranker.rank(None, []), TypeError, "query is NoneType, expected str"),
    *(
        (
            lambda m, wrong=wrong: m.reranker.predict([("q", d) for d in "abc"], activation_fn=wrong),
            ValueError,
            "activation_fn must give one number per score, [3], found",
        )
        for wrong in (lambda x: 0.5, lambda x: None, lambda x: [x, x], lambda x: x[:2])
    ),
    (lambda m: m.reranker.predict(PAIR[0], activation_fn=lambda x: 0.5), ValueError, "activation_fn"),
    # Others
    (
        lambda m: verify(m.embedder, against="jax"),
        ValueError,
        "against = 'jax' is not one of numpy, transformers",
    ),
    *(
        (
            lambda m, more=more: m.load_embedder(reproducible=True, **more),
            ValueError,
            f"{named} and reproducible=True",
        )
        for more, named in (
            ({"matmul_precision": "medium"}, "matmul_precision = 'medium'"),
            ({"backend": "numpy"}, "backend = 'numpy'"),
        )
    ),
]


@pytest.mark.parametrize("call, error, message", ARGUMENTS, ids=[row[2] for row in ARGUMENTS])
def test_an_argument_is_refused(models, call, error, message):
    with pytest.raises(error) as caught:
        call(models)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "path, arguments, message",
    [
        ("mmx", {}, "QWEN3NP_ISA = 'mmx'"),
        *(
            (path, {"reproducible": True}, f"QWEN3NP_ISA = {path} and reproducible=True")
            for path in (isa.AMX, isa.AMX_SPELLED_OUT, isa.AVX512_BF16)
        ),
    ],
)
def test_an_instruction_path_is_refused(models, monkeypatch, path, arguments, message):
    monkeypatch.setenv("QWEN3NP_ISA", path)
    with pytest.raises(ValueError) as caught:
        models.load_embedder(**arguments)
    assert message in str(caught.value)


# ---- files of a model's folder

Change = Callable[[Path], object]


def put(name: str, content: object) -> Change:
    """In place of the file that is there."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))

    return change


def add(name: str, **values: object) -> Change:
    """To the object that the file holds, if there is one."""

    def change(folder: Path) -> None:
        known = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(known | values))

    return change


def drop(name: str, key: str) -> Change:
    def change(folder: Path) -> None:
        known = json.loads((folder / name).read_text())
        del known[key]
        (folder / name).write_text(json.dumps(known))

    return change


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


POOLING, SETTINGS, LENGTH = (
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
NORMALIZE, LOGITS, MODULES = "2_Normalize/config.json", "1_LogitScore/config.json", "modules.json"
TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOL = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
DENSE, LOGIT_SCORE = ({"type": f"sentence_transformers.models.{kind}"} for kind in ("Dense", "LogitScore"))
FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}

# The file, what it holds instead, and what the message says beside the file's name.
SIDE_FILES = [
    (POOLING, {"pooling_mode_mean_tokens": True}, "mean_tokens"),
    (POOLING, {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, "lasttoken, mean"),
    (POOLING, {"pooling_mode_mean_tokens": 1, "pooling_mode_lasttoken": True}, "lasttoken, mean"),
    (POOLING, {"pooling_mode": "mean"}, "pooling mode mean"),
    (POOLING, {"pooling_mode": "cls", "pooling_mode_lasttoken": True}, "pooling mode cls"),
    (POOLING, {"pooling_mode": ["lasttoken", "mean"]}, "pooling mode lasttoken, mean"),
    (POOLING, {"pooling_mode": "lasttoken", "embedding_dimension": 64}, "embedding_dimension is 64"),
    (POOLING, {"pooling_mode_lasttoken": True, "include_prompt": False}, "include_prompt = False"),
    (POOLING, [], "expected a JSON object, found list"),
    (NORMALIZE, {"module_input_name": "token_embeddings"}, "module_input_name"),
    (MODULES, [TRANSFORMER, POOL, DENSE], "Pooling -> Dense"),
    (MODULES, [{"type": "custom.Transformer", "path": ""}, POOL], "code of the model's own"),
    (MODULES, [{**TRANSFORMER, "path": "../other"}, POOL], "is not a folder inside the model's"),
    (MODULES, [POOL, TRANSFORMER], "Pooling -> Transformer"),
    (MODULES, [], "not supported"),
    (MODULES, {}, "not a list of modules"),
    (MODULES, [TRANSFORMER, 5], "not a list of modules"),
    (SETTINGS, {"similarity_fn_name": "angular"}, "similarity_fn_name = 'angular'"),
    (SETTINGS, {"prompts": {"query": 5}}, "prompts must map names to strings"),
    (SETTINGS, {"prompts": {"query": ""}, "default_prompt_name": "p"}, "default_prompt_name = 'p'"),
    (SETTINGS, {"default_prompt_name": ["query"]}, "default_prompt_name = ['query']"),
    (SETTINGS, {"model_type": "CrossEncoder"}, "model_type = 'CrossEncoder' is "),
    (SETTINGS, {"truncate_dim": "64"}, "truncate_dim must be a positive integer"),
    (LENGTH, {"query_length": 32}, "query_length = 32"),
    (LENGTH, {"processor_kwargs": {"truncation_side": "left"}}, "with 'truncation_side'"),
    (LENGTH, {"unknown": 1}, "unknown = 1"),
    (LENGTH, {"do_lower_case": "yes"}, "do_lower_case must be"),
    (LENGTH, {"transformer_task": "fill-mask"}, "transformer_task = 'fill-mask'"),
    (LENGTH, {"modality_config": {"text": FORWARD, "message": FORWARD}}, "chat template (message)"),
    (LENGTH, {"modality_config": {"image": FORWARD}}, "only text and message"),
    (LENGTH, {"max_seq_length": 0}, "max_seq_length must be a positive integer, found 0"),
    (LENGTH, {"max_seq_length": "512"}, "found '512'"),
]
ADAPTER = add("adapter_config.json", peft_type="LORA")
MERGE = "a LoRA adapter beside its base model; merge it first"
NO_END = add("tokenizer.json", post_processor=None)
# The class, the folder, what is changed in it, and what the message says.
FOLDERS: list[tuple[type, str, list[Change], list[str]]] = [
    *((Embedder, "tiny", [put(name, content)], [name, reason]) for name, content, reason in SIDE_FILES),
    (
        Embedder,
        "tiny",
        [put(MODULES, [TRANSFORMER, POOL, LOGIT_SCORE])],
        ["is a reranker", "use qwen3np.Reranker"],
    ),
    (Embedder, "tiny", [put(MODULES, [TRANSFORMER])], ["is a reranker", "use qwen3np.Reranker"]),
    (Embedder, "tiny", [remove(POOLING)], ["1_Pooling"]),
    (Embedder, "tiny", [ADAPTER], [MERGE]),
    (Reranker, "tiny_reranker", [ADAPTER], [MERGE]),
    (Reranker, "tiny", [], ["is an embedding model", "use qwen3np.Embedder"]),
    (Embedder, "tiny_reranker", [], ["is a reranker", "use qwen3np.Reranker (qwen3np rerank)"]),
    (Reranker, "tiny_reranker", [add("config.json", tie_word_embeddings=False)], ["has no lm_head.weight"]),
    (Reranker, "tiny_reranker", [drop("config.json", "tie_word_embeddings")], ["has no lm_head.weight"]),
    *(
        (Reranker, "tiny_reranker", [put(LOGITS, ids)], words)
        for ids, words in (
            ({"true_token_id": 5, "false_token_id": 5}, [LOGITS, "must be two token ids, found 5 and 5"]),
            ({"true_token_id": "5"}, [LOGITS, "must be two token ids, found '5' and None"]),
            ({"true_token_id": 2048, "false_token_id": 1}, ["2048 and 1", "but vocab_size is 2048"]),
        )
    ),
    (Reranker, "tiny_reranker", [remove(MODULES)], ["ends every text with a token of its own"]),
    (Reranker, "tiny_reranker", [remove(MODULES), NO_END], ['has no "yes" and "no"']),
    (Reranker, "tiny_reranker", [add(LENGTH, modality_config=None)], ["puts no pair into the chat template"]),
    (
        Reranker,
        "tiny_reranker",
        [add(SETTINGS, model_type="CrossEncoder", prompts={"law": ""}, default_prompt_name="other")],
        [SETTINGS, "default_prompt_name = 'other' is not one of its prompts"],
    ),
]


@pytest.mark.parametrize("kind, folder, changes, message", FOLDERS, ids=[row[3][-1] for row in FOLDERS])
def test_a_folder_is_refused(request, tmp_path, kind, folder, changes, message):
    copy = Path(shutil.copytree(request.getfixturevalue(folder), tmp_path / "model"))
    for change in changes:
        change(copy)
    with pytest.raises(CheckpointError) as caught:
        kind(copy, backend="numpy")
    assert all(part in str(caught.value) for part in message)


# ---- commands

# Arguments, stdin, and what the line says. TINY and RERANKER stand for folders of models.
COMMANDS = [
    (["embedd"], b"", "invalid choice: 'embedd'"),
    (["embed", "--dimension", "5", "x"], b"", "unrecognized arguments: --dimension"),
    (["embed", "--dim", "many", "x"], b"", "invalid int value: 'many'"),
    (["embed", "--dim", "7", "--model", "TINY", "x"], b"", "truncate_dim = 7 must be between 32 and 96"),
    (["embed", "--dim", "97", "--model", "TINY", "x"], b"", "truncate_dim = 97 must be between"),
    (["embed", "--backend", "cuda", "--model", "TINY", "x"], b"", "--backend: invalid choice: 'cuda'"),
    (["embed", "--model", "./missing", "x"], b"", "missing: no such folder"),
    (["embed", "--model", "two words", "x"], b"", "neither a folder nor a valid Hub id"),
    (["embed", "--model", ".", "x"], b"", "holds no config.json"),
    (["embed", "--model", "TINY", "\udcff"], b"", "text 0 is not valid Unicode"),
    (["embed", "--model", "TINY", "--prompt", "\udcff", "x"], b"", "the prompt is not valid Unicode"),
    (["embed", "--model", "TINY"], b"", "no text given"),
    (["embed", "--model", "TINY", "-"], b"", "no text given"),
    (["embed", "--model", "TINY"], b"\xef\xbb\xbf", "no text given"),
    (["embed", "--model", "TINY", "--input", "-"], b"", "no text given"),
    (["embed", "--model", "TINY", "-", "-"], b"a\n", "- is stdin, which can be read once"),
    (["embed", "--model", "TINY", "-", "--column", "a"], b"a\n", "--column is for an input file"),
    (["embed", "--model", "TINY"], "a".encode("utf-16"), "stdin: is UTF-16LE, expected UTF-8"),
    (["embed", "--model", "TINY"], "text\n".encode("utf-16-be"), "stdin: is UTF-16BE, expected UTF-8"),
    (["embed", "--model", "TINY"], b"a\n" + b"b" * (17 << 20), "stdin, line 2: is longer than 16 MiB"),
    (["embed", "--model", "TINY", "mis\nsing.txt"], b"", "mis\\nsing.txt: there is no such file"),
    (["embed", "--model", "TINY", "x", "--a\nb\x1b"], b"", "unrecognized arguments: --a\\nb\\x1b"),
    (["similarity", "--model", "TINY", "-q", "-", "-d", "-"], b"a\n", "- is stdin, which can be read"),
    (["similarity", "--model", "TINY", "-q", "q", "-d", "d.txt"], b"", "d.txt: there is no such file"),
    (["similarity", "--model", "TINY", "-q", __file__, "-d", "x"], b"", "is the name of a file"),
    (["similarity", "--model", "TINY", "-q", "x", "-d", os.curdir + "/"], b"", "name of a folder"),
    (["embed", "--model", "TINY"], b"good\nb\xffd\n", "stdin, line 2: is not UTF-8"),
    (["embed", "--model", "TINY", "--output", "vectors.txt", "x"], b"", "the name must end in .npy"),
    (["embed", "--model", "TINY", "--output", "missing/v.npy", "x"], b"", "there is no folder missing"),
    (["similarity", "--model", "TINY", "-q", "x"], b"", "arguments are required: -d/--document"),
    (["info", "--model", "./missing"], b"", "missing: no such folder"),
    (["synth", "new", "--like", "7B"], b"", "argument --like: invalid choice: '7B'"),
    (["synth", "new", "--layers", "0"], b"", "layers = 0"),
    (["synth", "."], b"", "give the name of a new folder"),
]
RERANK = [
    ([], b"", "arguments are required: QUERY (qwen3np rerank --help)"),
    (["q"], b"", "no text given"),
    (["q", "--documents", "-"], b"good\nb\xffd\n", "stdin, line 2: is not UTF-8"),
    (["q", "--documents", "bad.txt"], b"", "bad.txt, line 2: is not UTF-8"),
    (["q", "--documents", "bad.jsonl"], b"", "bad.jsonl, line 2: is not JSON"),
    (["q", "--documents", "null.jsonl", "--column", "text"], b"", "line 1: column 'text' is null"),
    (["q", "--documents", "other.jsonl", "--column", "body"], b"", "has no column 'body'; there"),
    (["q", "--documents", "bad.txt", "--column", "text"], b"", "a .txt file has no columns"),
    (["q", "--documents", "missing.txt"], b"", "missing.txt: there is no such file"),
    (["q", "--documents", "notes.rst"], b"", "the name must end in .txt, .md, .jsonl"),
    (["q", "d", "--documents", "bad.txt"], b"", "--documents bad.txt and documents as arguments ('d')"),
    (["q", "--column", "text"], b"d\n", "--column text: only a file has columns"),
    (["q", "d", "--delimiter", ";"], b"", "--delimiter ;: only a file has columns"),
    (["q", "d", "bad.txt"], b"", "bad.txt: is the name of a file; its content as a text"),
    (["q", "missing.jsonl"], b"", "missing.jsonl: there is no such file; if it is a text: --literal"),
    (["q", "d", "."], b"", ".: is the name of a folder; name a file in it"),
    (["notes.md", "d"], b"", "notes.md: is the name of a file; its content as a text"),
    (["-", "d"], b"d\n", "the query cannot come from stdin"),
    (["q", "d", "--instruction", "notes.md"], b"", "--instruction notes.md: is the name of a file"),
    (["q", "-"], "text".encode("utf-16"), "stdin: is UTF-16LE, expected UTF-8"),
    (["q", "d", "--top-k", "0"], b"", "top_k must be a positive integer, found 0"),
    (["q", "d", "--top-k", "many"], b"", "invalid int value: 'many'"),
    (["\udcff", "d"], b"", "the query of pair 0 is not valid Unicode"),
    (["q", "d", "--instruction", "\udcff"], b"", "the instruction is not valid Unicode"),
    (["q", "d", "--model", "TINY"], b"", "use qwen3np.Embedder (qwen3np embed, qwen3np similarity)"),
    (["q", "d", "--model", "./missing"], b"", "missing: no such folder"),
]
COMMANDS += [(["rerank", "--model", "RERANKER", *args], stdin, message) for args, stdin, message in RERANK]
COMMANDS += [
    (["embed", "--model", "RERANKER", "x"], b"", "use qwen3np.Reranker (qwen3np rerank)"),
    (
        ["similarity", "--model", "RERANKER", "-q", "a", "-d", "b"],
        b"",
        "use qwen3np.Reranker (qwen3np rerank)",
    ),
]
FILES = {
    "bad.txt": b"good\nb\xffd\n",
    "bad.jsonl": b'{"text": "a"}\n{"text"\n',
    "null.jsonl": b'{"text": null}\n',
    "other.jsonl": b'{"text": "a"}\n',
    "notes.md": b"a\n",
    "notes.rst": b"a\n",
}


@pytest.mark.parametrize("args, stdin, message", COMMANDS)
def test_a_command_is_refused(run, tiny, tiny_reranker, tmp_path, monkeypatch, args, stdin, message):
    """Whatever is wrong: one line, exit code 2, nothing on stdout, nothing written, no traceback."""
    folders = {"TINY": tiny, "RERANKER": tiny_reranker}
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*[folders.get(arg, arg) for arg in args], stdin=stdin)
    assert (code, out) == (2, "")
    assert err.startswith("qwen3np") and ": error: " in err and message in err
    assert err.count("\n") == 1 and err.endswith("\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
