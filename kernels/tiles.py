"""AMX: products of 16 x 16 tiles, and float32 as a sum of bfloat16 parts.

A tile register holds 16 rows of 64 bytes. One instruction, tdpbf16ps, adds to C [16, 16] float32 the product
of A, 16 rows of 32 bfloat16, and B, 16 rows of 16 pairs: B's row k holds rows 2k and 2k + 1 of its matrix,
one of each in turns. With y^T = W x^T, A is 16 rows of W as the checkpoint has them, and B and C are panels
of 16 tokens.

The matrix on the left
    w[N/32, K/32, 2, 16, 32]    (uint16, bfloat16 bits) two tiles of 16 rows side by side: 32 rows are one
    stream
The operand on the right
    x[P, parts, K/2, 32]        (uint16) a float32 value is the sum of its parts: each is what the parts
    before
                                it left, rounded to bfloat16
The weights are bfloat16, so with two parts a product is float32's but for 2^-17, and with three exact; the
sums are float32 always.

On a CPU without AMX the same code is compiled with the instructions spelled out in float32, for tests.
Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiled import inline
from .isa import has_feature
from .lanes import constant, i8, i32, i64, llvm, pointer, v16, v16i, vector_load, vector_store

TILE = 512  # bfloat16 values of a tile
K_BLOCK = 8  # k steps of 32: the weights of a block, 16 KB, stay in L1 while all panels pass
LINES = 32  # cache lines of weights that a k step consumes

Void, Pointer = ir.VoidType(), i8.as_pointer()


class AmxTiles:
    """The instructions, on tile registers 0 to 7."""

    def __init__(self, b: Any) -> None:
        self.b = b

    def _call(self, name: str, *args: Any) -> None:
        kind = ir.FunctionType(Void, [a.type for a in args])
        self.b.call(cgutils.get_or_insert_function(self.b.module, kind, f"llvm.x86.{name}"), args)

    def zero(self, tile: int) -> None:
        self._call("tilezero", ir.Constant(i8, tile))

    def load(self, tile: int, address: Any, passing: bool = False) -> None:
        """passing: a hint not to keep it in L1, where what is used again would have to leave."""
        name = "tileloaddt164" if passing else "tileloadd64"
        self._call(name, ir.Constant(i8, tile), address, ir.Constant(i64, 64))

    def store(self, tile: int, address: Any) -> None:
        self._call("tilestored64", ir.Constant(i8, tile), address, ir.Constant(i64, 64))

    def multiply(self, c: int, a: int, b: int) -> None:
        self._call("tdpbf16ps", *(ir.Constant(i8, tile) for tile in (c, a, b)))

    def configure(self) -> None:
        """Eight tiles of 16 rows of 64 bytes: this thread's state until release()."""
        name = "qwen3np.tile_config"
        if name not in self.b.module.globals:
            layout = bytearray(64)
            layout[0] = 1  # palette
            layout[16:32] = bytes([64, 0] * 8)  # bytes a row
            layout[48:56] = bytes([16] * 8)  # rows
            variable = ir.GlobalVariable(self.b.module, ir.ArrayType(i8, 64), name)
            variable.linkage, variable.align = "internal", 64
            variable.initializer = ir.Constant(variable.value_type, layout)
        self._call("ldtilecfg", self.b.bitcast(self.b.module.globals[name], Pointer))

    def release(self) -> None:
        self._call("tilerelease")


class SpelledOutTiles:
    """The same, on eight arrays of the stack frame."""

    def __init__(self, b: Any) -> None:
        self.b = b
        self.tiles: dict[int, Any] = {}

    def _tile(self, tile: int) -> Any:
        if tile not in self.tiles:
            self.tiles[tile] = cgutils.alloca_once(self.b, ir.ArrayType(v16i, 16))
        return self.b.bitcast(self.tiles[tile], Pointer)

    def _rows(self, base: Any) -> list[Any]:
        return [self.b.gep(base, [ir.Constant(i64, 64 * row)]) for row in range(16)]

    def _copy(self, to: Any, source: Any) -> None:
        for row, from_row in zip(self._rows(to), self._rows(source), strict=True):
            vector_store(self.b, vector_load(self.b, from_row, v16), row)

    def zero(self, tile: int) -> None:
        for row in self._rows(self._tile(tile)):
            vector_store(self.b, constant(0.0), row)

    def load(self, tile: int, address: Any, passing: bool = False) -> None:
        self._copy(self._tile(tile), address)

    def store(self, tile: int, address: Any) -> None:
        self._copy(address, self._tile(tile))

    def multiply(self, c: int, a: int, b: int) -> None:
        self.b.call(_product_function(self.b.module), [self._tile(tile) for tile in (c, a, b)])

    def configure(self) -> None:
        pass

    def release(self) -> None:
        pass


def _product_function(module: Any) -> Any:
    """tdpbf16ps as a function of three addresses. In each row: one sum over the even k, one over the odd;
    both join C at the end."""
    name = "qwen3np.tdpbf16ps"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(Void, [Pointer] * 3), name)
    function.linkage = "internal"
    b = ir.IRBuilder(function.append_basic_block())
    c_base, a_base, b_base = function.args
    with cgutils.for_range(b, ir.Constant(i64, 16)) as row:
        c_row = b.gep(c_base, [b.mul(row.index, ir.Constant(i64, 64))])
        sums = [cgutils.alloca_once_value(b, constant(0.0)) for _ in range(2)]
        for total in sums:
            b.store(constant(0.0), total, align=64)
        with cgutils.for_range(b, ir.Constant(i64, 16)) as pair:
            a_at = b.add(b.mul(row.index, ir.Constant(i64, 64)), b.mul(pair.index, ir.Constant(i64, 4)))
            a_pair = b.load(b.bitcast(b.gep(a_base, [a_at]), i32.as_pointer()))
            b_row = vector_load(b, b.gep(b_base, [b.mul(pair.index, ir.Constant(i64, 64))]), v16i)
            for half, total in enumerate(sums):
                x = b.bitcast(_half(b, b_row, half, v16i), v16)
                scalar = b.bitcast(_half(b, a_pair, half, i32), ir.FloatType())
                one = b.insert_element(ir.Constant(v16, ir.Undefined), scalar, ir.Constant(i32, 0))
                w = b.shuffle_vector(one, one, ir.Constant(v16i, [0] * 16))
                b.store(llvm(b, "llvm.fma.v16f32", w, x, b.load(total, align=64)), total, align=64)
        both = b.fadd(*(b.load(total, align=64) for total in sums))
        vector_store(b, b.fadd(vector_load(b, c_row, v16), both), c_row)
    b.ret_void()
    return function


def _half(b: Any, pair: Any, half: int, kind: Any) -> Any:
    """The lower or upper bfloat16 of 32 bits, as the bits of a float32."""

    def bits(value: int) -> Any:
        return ir.Constant(kind, [value] * 16 if kind is v16i else value)

    return b.and_(pair, bits(0xFFFF0000)) if half else b.shl(pair, bits(16))


Tiles: Any = AmxTiles if has_feature("amx-bf16") else SpelledOutTiles


def emit_block(
    b: Any, tiles: Any, panels: int, mode: str, passing: bool, w: Any, x: Any, c: Any, sizes: Any
) -> None:
    """32 rows of W times one or two panels: the eight registers hold 2 x 2 results, 2 x 1 of each operand.

    w, x, c: byte addresses. sizes: x_step and c_step, bytes from panel to panel; part_step, bytes from part
    to part of x; parts; w_part_step and w_parts, the same of W: part i of one meets the first parts - i of
    the other, since further products are smaller than what is left out; steps, of 32 k; prefetch, a byte
    address; lines, of 64 bytes, that every k step asks for from there on. mode "store": C = W x. "continue":
    C += W x.
    passing: x comes from L2, and is not used again soon.
    """
    x_step, c_step, part_step, parts, w_part_step, w_parts, steps, ahead, lines = sizes

    def moved(base: Any, *terms: Any) -> Any:
        for step, count in terms:
            step, count = (ir.Constant(i64, n) if isinstance(n, int) else n for n in (step, count))
            base = b.gep(base, [b.mul(step, count)])
        return base

    results = {2 * r + p: moved(c, (c_step, p), (1024, r)) for r in range(2) for p in range(panels)}
    for tile, address in results.items():
        tiles.zero(tile) if mode == "store" else tiles.load(tile, address)
    with cgutils.for_range(b, w_parts) as w_part, cgutils.for_range(b, steps) as k:
        w_k, x_k = moved(w, (w_part_step, w_part.index), (2048, k.index)), moved(x, (1024, k.index))
        # Each load next to the product that needs it: four loads first, and the tile unit waits for them.
        for p in range(panels):
            if p == 0:
                tiles.load(4, w_k)
            tiles.load(6 + p, moved(x_k, (x_step, p)), passing)
            tiles.multiply(p, 4, 6 + p)
            if p == 0:
                tiles.load(5, moved(w_k, (1024, 1)))
            tiles.multiply(2 + p, 5, 6 + p)
        left = b.sub(b.sub(parts, ir.Constant(i64, 1)), w_part.index)
        with cgutils.for_range(b, left) as part:
            x_part = moved(x_k, (part_step, 1), (part_step, part.index))
            for p in range(panels):
                tiles.load(6 + p, moved(x_part, (x_step, p)), passing)
                for r in range(2):
                    tiles.multiply(2 * r + p, 4 + r, 6 + p)
        with cgutils.for_range(b, lines) as line:
            at = b.add(b.mul(k.index, lines), line.index)
            hint = [moved(ahead, (64, at)), *(ir.Constant(i32, n) for n in (0, 2, 1))]  # read, into L2
            kind = ir.FunctionType(Void, [a.type for a in hint])
            b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0"), hint)
    for tile, address in results.items():
        tiles.store(tile, address)


def _block(panels: int, mode: str, passing: bool) -> Any:
    """emit_block as a Numba function, on arrays and flat indexes."""

    @intrinsic
    def block(
        typingctx, w, w_at, w_part_step, w_parts, x, x_at, x_step, part_step, parts, c, c_at, c_step, steps,
        ahead, lines,
    ):  # fmt: skip
        def codegen(context, b, sig, args):
            (
                w, w_at, w_part_step, w_parts, x, x_at, x_step, part_step, parts, c, c_at, c_step, steps,
                ahead, lines,
            ) = args  # fmt: skip

            def address(i, array, index):
                return b.bitcast(pointer(context, b, sig.args[i], array, index), Pointer)

            def size(n, itemsize):
                return b.mul(n, ir.Constant(i64, itemsize))

            sizes = (size(x_step, 2), size(c_step, 4), size(part_step, 2), parts)
            sizes += (size(w_part_step, 2), w_parts, steps)
            emit_block(
                b, Tiles(b), panels, mode, passing, address(0, w, w_at), address(4, x, x_at),
                address(9, c, c_at), (*sizes, address(0, w, ahead), lines),
            )  # fmt: skip
            return context.get_dummy_value()

        n = types.intp
        return types.void(w, n, n, n, x, n, n, n, n, c, n, n, n, n, n), codegen

    return block


def tiled(array: Any) -> bool:
    """Whether a Numba array type is that of a left operand in tiles: weights, keys or values."""
    return array.dtype == types.uint16 and array.ndim >= 5


def _state(method: str, text: str) -> Any:
    def change(typingctx, array):
        def codegen(context, b, sig, args):
            if tiled(sig.args[0]):
                getattr(Tiles(b), method)()
            return context.get_dummy_value()

        return types.void(array), codegen

    change.__doc__ = text
    return intrinsic(change)


# Before the first product of a kernel on this thread, since other libraries have layouts of their own; and
# after the last, since a thread whose tiles are in use costs the system 8 KB at every switch. `array`: a left
# operand; nothing happens if it is not in tiles.
configure = _state("configure", "Lay out this thread's tile registers.")
release = _state("release", "Give this thread's tile registers back.")


def _multiply(passing: bool) -> Any:
    store_1, store_2 = _block(1, "store", passing), _block(2, "store", passing)
    continue_1, continue_2 = _block(1, "continue", passing), _block(2, "continue", passing)

    @inline
    def multiply(
        fresh, w, w_at, w_part_step, w_parts, steps, x, x_at, x_step, part_step, parts, panels, c, c_at,
        c_step, lines,
    ):  # fmt: skip
        """C[p] (+)= 32 rows of W times panels p of x: sums over `steps` times 32 k. `fresh`: C is not read.

        Flat indexes; c_step from panel to panel, a panel's 32 rows one below the other.
        """
        for p in range(0, panels, 2):
            x_p, c_p = x_at + p * x_step, c_at + p * c_step
            ahead = w_at + steps * 2 * TILE + p // 2 * lines * steps * 32
            if p + 1 < panels:
                if fresh:
                    store_2(
                        w, w_at, w_part_step, w_parts, x, x_p, x_step, part_step, parts, c, c_p, c_step,
                        steps, ahead, lines,
                    )  # fmt: skip
                else:
                    continue_2(
                        w, w_at, w_part_step, w_parts, x, x_p, x_step, part_step, parts, c, c_p, c_step,
                        steps, ahead, lines,
                    )  # fmt: skip
            elif fresh:
                store_1(
                    w, w_at, w_part_step, w_parts, x, x_p, x_step, part_step, parts, c, c_p, c_step, steps,
                    ahead, lines,
                )  # fmt: skip
            else:
                continue_1(
                    w, w_at, w_part_step, w_parts, x, x_p, x_step, part_step, parts, c, c_p, c_step, steps,
                    ahead, lines,
                )  # fmt: skip

    return multiply


multiply_tiles, multiply_passing = _multiply(False), _multiply(True)


@inline
def rows_of_tiles(w, n, x, panels, c, c_at, c_step):
    """C[p] = rows 32n to 32n + 31 of W times panel p of x, over the whole of K. While the panels pass one
    block of the weights, the next is fetched, a few cache lines a step."""
    steps, parts = w.shape[1], x.shape[1]
    part_step = x.shape[2] * x.shape[3]
    lines = LINES // max(1, (panels + 1) // 2)
    for k in range(0, steps, K_BLOCK):
        w_at = (n * steps + k) * 2 * TILE
        multiply_passing(
            k == 0, w, w_at, 0, 1, min(K_BLOCK, steps - k), x, k * TILE, parts * part_step, part_step, parts,
            panels, c, c_at, c_step, lines,
        )  # fmt: skip
