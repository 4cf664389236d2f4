"""Kernels compile where they can be kept and where they cannot, for this CPU and for one with AMX."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qwen3np.kernels import isa

EMBED = """
import sys
from qwen3np import Embedder
print(Embedder(sys.argv[1]).encode("one text").tobytes().hex())
"""


def start(code: str, model, cache: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(model)],
        env=os.environ | {"XDG_CACHE_HOME": cache} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.slow
def test_two_processes_fill_one_cold_cache(tiny, tmp_path):
    """Both work, one compiles; a third compiles nothing."""
    both = [start(EMBED, tiny, str(tmp_path)) for _ in range(2)]
    (first, first_err), (second, second_err) = (finish(process) for process in both)
    assert first == second
    assert (first_err + second_err).count("compiling the kernel forward") == 1
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.kernel")}
    out, err = finish(start(EMBED, tiny, str(tmp_path)))
    assert out == first and "compiling" not in err
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.kernel")} != {}


EVERYTHING = """
import sys
from qwen3np import Embedder
from qwen3np.runtime.numba_backend import FLOATING
for precision in FLOATING:
    list(Embedder(sys.argv[1], matmul_precision=precision).backend.stages([[1, 2]]))
print("no message")
"""


@pytest.mark.slow
def test_after_compile_nothing_is_compiled(tiny, tmp_path, capsys):
    """As in a container image: `qwen3np compile`, then any precision, also where nothing can be written."""
    compile_all = "from qwen3np.cli import main; main(['compile'])"
    _, err = finish(start(compile_all, tiny, str(tmp_path)))
    assert err.count("compiling the kernel forward") >= 2  # of bfloat16 and of float32 weights
    assert err.count("compiling") == err.count("compiled the kernel")
    no_files = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))" if os.name != "nt" else ""
    assert finish(start(no_files + EVERYTHING, tiny, str(tmp_path))) == ("no message\n", "")
    out, err = finish(start(compile_all, tiny, str(tmp_path)))
    assert err == "" and out.startswith(str(tmp_path))


COMPILE = """
from numba import typeof
from qwen3np.runtime import numba_backend, packed_weights
from qwen3np.loading.checkpoint import Checkpoint
from qwen3np.engine import forward
from qwen3np.runtime.threads import Job
Job.run = packed_weights.compile_for = lambda *args, **kwargs: None
numba_backend.compile_for = lambda kernel, arguments, _: kernel.compile(tuple(map(typeof, arguments)))
backend = numba_backend.NumbaBackend(Checkpoint(sys.argv[1]))
assert backend.isa == path, backend.isa
print(*forward.inspect_asm().values())
"""

FOR_AMX = f"""
import sys
path = "amx"
from qwen3np.kernels import isa
here = isa.features()
isa.features = lambda: {{**here, "amx-bf16": True, "amx-tile": True, "avx512bf16": True}}
isa.amx_granted = lambda: True  # the code is compiled, and never run
{COMPILE}"""

FOR_AVX2 = f"""
import sys
path = "avx2"
from llvmlite import binding
here = dict(binding.get_host_cpu_features())
more = ("avx512f", "avx512vl", "avx512bw", "avx2")
binding.get_host_cpu_features = lambda: here | dict.fromkeys(more, True)
{COMPILE}"""


@pytest.mark.slow
def test_the_amx_path_is_tile_instructions(tiny, tmp_path):
    """What an AMX CPU runs, compiled for one: whatever this CPU is."""
    features = "+amx-bf16,+amx-tile,+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512bf16,+avx2,+fma"
    cpu = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": features}
    assembly, _ = finish(start(FOR_AMX, tiny, str(tmp_path), **cpu))
    for instruction in ("ldtilecfg", "tilerelease", "tileloadd", "tilestored", "tilezero", "tdpbf16ps"):
        assert instruction in assembly
    assert "tdpbf16ps\t%tmm7, %tmm5, %tmm3" in assembly  # 2 x 2 results


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in isa.available(), reason="not an x86 CPU with AVX2")
def test_the_avx2_path_has_no_other_registers(tiny, tmp_path):
    """On a CPU that has AVX-512: neither its registers nor its masks."""
    cpu = {"NUMBA_CPU_NAME": "sapphirerapids", "QWEN3NP_ISA": "avx2"}
    assembly, _ = finish(start(FOR_AVX2, tiny, str(tmp_path), **cpu))
    assert "vfmadd231ps" in assembly and "%ymm15" in assembly
    for beyond in ("zmm", "%ymm16", "%xmm16", "%k1"):
        assert beyond not in assembly


OLDER_CPU = f"""
from llvmlite import binding
newer = "adx aes clwb sha sse4a vaes vpclmulqdq avx512f"  # that CPUs with AVX2 may lack
here = dict(binding.get_host_cpu_features())
binding.get_host_cpu_name = lambda: "haswell"
binding.get_host_cpu_features = lambda: here | dict.fromkeys(newer.split(), False)
{EMBED}"""


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in isa.available(), reason="not an x86 CPU with AVX2")
def test_the_avx2_path_is_compiled_once_for_all_x86_cpus(tiny, tmp_path):
    """A container image brings it along, compiled on whatever CPU built it."""
    first, err = finish(start(EMBED, tiny, str(tmp_path), QWEN3NP_ISA="avx2"))
    assert "compiled the kernel forward (avx2" in err
    assert finish(start(OLDER_CPU, tiny, str(tmp_path), QWEN3NP_ISA="avx2")) == (first, "")
