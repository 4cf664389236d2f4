"""The model's files as the peers read them, made once from the same checkpoint: ONNX, OpenVINO's IR, GGUF.

python benchmarks/exports.py FOLDER NAME...    of EXPORTS; each appears in FOLDER complete or not at all

Of the 0.6B: "onnx" and "openvino" take 2.4 GB each, those of 8 bits 0.6 to 1.3 GB.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _last_states(folder: Path, attention: str) -> Any:
    """transformers' model in float32 as a module of two tensors, for exporters."""
    import torch
    from transformers import AutoModel

    class LastStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(
                folder, dtype=torch.float32, attn_implementation=attention
            ).eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            options = {"use_cache": False, "attention_mask": attention_mask}
            return self.model(input_ids, **options).last_hidden_state

    return LastStates().eval()


def onnx(folder: Path, out: Path) -> None:
    import torch

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in range(2))
    with torch.no_grad():
        torch.onnx.export(
            _last_states(folder, "eager"), example, str(out / "model.onnx"), dynamo=True, external_data=True,
            input_names=["input_ids", "attention_mask"],
            dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
        )  # fmt: skip


def onnx_int8(folder: Path, out: Path) -> None:
    """The float32 export with weights in int8, a scale a row of them.

    Activations are quantised as they come, with one scale a tensor.
    """
    from onnxruntime.quantization import quantize_dynamic

    source = made(folder, "onnx") / "model.onnx"
    options = {"op_types_to_quantize": ["MatMul"], "per_channel": True}
    quantize_dynamic(source, out / "model.onnx", use_external_data_format=True, **options)


def onnx_nbits8(folder: Path, out: Path) -> None:
    """The float32 export with weights in int8, in blocks of 32 as in Q8_0.

    accuracy_level 4 quantises activations alike.
    """
    import onnx as onnx_file
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    model = onnx_file.load(made(folder, "onnx") / "model.onnx")
    config = nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=8)
    quantizer = nbits.MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)


def openvino(folder: Path, out: Path) -> None:
    import openvino as ov
    import torch

    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        model = ov.convert_model(_last_states(folder, "sdpa"), example_input=example)
    ov.save_model(model, out / "model.xml", compress_to_fp16=False)  # float16 has not bfloat16's range


def openvino_int8(folder: Path, out: Path) -> None:
    """The float32 export with weights in int8, a scale a row of them: NNCF's default for language models.

    Whether activations are quantised as well is the plug-in's choice, by the CPU.
    """
    import nncf
    import openvino as ov

    model = ov.Core().read_model(made(folder, "openvino") / "model.xml")
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    ov.save_model(model, out / "model.xml", compress_to_fp16=False)


def gguf(folder: Path, out: Path) -> None:
    from gguf_file import write

    write(folder, out / "model.gguf", "bf16")


def gguf_q8_0(folder: Path, out: Path) -> None:
    from gguf_file import write

    write(folder, out / "model.gguf", "q8_0")


EXPORTS: dict[str, Callable[[Path, Path], None]] = {
    "onnx": onnx, "onnx-int8": onnx_int8, "onnx-nbits8": onnx_nbits8, "openvino": openvino,
    "openvino-int8": openvino_int8, "gguf": gguf, "gguf-q8_0": gguf_q8_0,
}  # fmt: skip


def made(folder: Path, name: str) -> Path:
    """The folder of an export, which is made if it is not there. Raises what the exporter raises."""
    out = folder / name
    if not out.exists():
        partial = folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        EXPORTS[name](folder, partial)
        partial.rename(out)
    return out


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(made(Path(sys.argv[1]), name))
