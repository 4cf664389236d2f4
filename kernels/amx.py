"""AMX: products of 16 x 16 tiles, and float32 as a sum of bfloat16 parts.

A tile register holds 16 rows of 64 bytes. One instruction, tdpbf16ps, adds to C [16, 16] float32 the product
of A, 16 rows of 32 bfloat16, and B, 16 rows of 16 pairs: B's row k holds rows 2k and 2k + 1 of its matrix,
one of each in turns. With y^T = W x^T, A is 16 rows of W as the checkpoint has them, and B and C are panels
of 16 tokens.

    left-hand side    w[N/32, K/32, 2, 16, 32]    two tiles of 16 rows by 32 columns, then those of the next
                                                  32 columns: 32 rows are one stream
    right-hand side   x[P, parts, K/2, 32]        pairs of rows: a float32 value is the sum of its parts

All are bfloat16 bits (uint16). Each part is what those before it left, rounded: split bfloat16, bf16x2 or
bf16x3. The weights are bfloat16, so bf16x2 reproduces a float32 product to 2^-17 relative, and bf16x3
exactly; the sums are float32 always.

On a CPU without AMX the same code is compiled with the instructions emulated in float32, for tests.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS; Henry, Tang,
Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations",
arXiv:1904.06376.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compact import compact
from .isa import has_feature
from .jit import inline
from .simd import constant, i8, i32, i64, llvm, pointer, v16, v16i, vector_load, vector_store

TILE = 512  # bfloat16 values of a tile
K_BLOCK = 8  # k steps of 32: the weights of a block, 16 KB, stay in L1 while all panels pass
LINES = 32  # cache lines of weights that a k step reads

Void, Pointer = ir.VoidType(), i8.as_pointer()


class AmxTiles:
    """The instructions of AMX, on tile registers 0 to 7."""

    def __init__(self, b: Any) -> None:
        self.b = b

    def _call(self, name: str, *args: Any) -> None:
        kind = ir.FunctionType(Void, [a.type for a in args])
        self.b.call(cgutils.get_or_insert_function(self.b.module, kind, f"llvm.x86.{name}"), args)

    def zero(self, tile: int) -> None:
        self._call("tilezero", ir.Constant(i8, tile))

    def load(self, tile: int, address: Any, passing: bool = False) -> None:
        """Load a tile; `passing` hints not to keep it in L1, for what is used again to stay there."""
        name = "tileloaddt164" if passing else "tileloadd64"
        self._call(name, ir.Constant(i8, tile), address, ir.Constant(i64, 64))

    def store(self, tile: int, address: Any) -> None:
        self._call("tilestored64", ir.Constant(i8, tile), address, ir.Constant(i64, 64))

    def multiply(self, c: int, a: int, b: int) -> None:
        self._call("tdpbf16ps", *(ir.Constant(i8, tile) for tile in (c, a, b)))

    def configure(self) -> None:
        """Lay out eight tiles of 16 rows of 64 bytes: this thread's state until release()."""
        name = "qwen3np.tile_config"
        if name not in self.b.module.globals:
            layout = bytearray(64)
            layout[0] = 1  # palette
            layout[16:32] = bytes([64, 0] * 8)  # bytes per row
            layout[48:56] = bytes([16] * 8)  # rows
            variable = ir.GlobalVariable(self.b.module, ir.ArrayType(i8, 64), name)
            variable.linkage, variable.align = "internal", 64
            variable.initializer = ir.Constant(variable.value_type, layout)
        self._call("ldtilecfg", self.b.bitcast(self.b.module.globals[name], Pointer))

    def release(self) -> None:
        self._call("tilerelease")


class EmulatedTiles:
    """The same instructions emulated in float32, on eight arrays of the stack frame."""

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
        self.b.call(_emulated_tdpbf16ps(self.b.module), [self._tile(tile) for tile in (c, a, b)])

    def configure(self) -> None:
        pass

    def release(self) -> None:
        pass


def _emulated_tdpbf16ps(module: Any) -> Any:
    """Make tdpbf16ps as a function of three addresses.

    In each row there is one sum over the even k and one over the odd; both join C at the end.
    """
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
    """Widen the lower or upper bfloat16 of 32 bits to the bits of a float32."""

    def bits(value: int) -> Any:
        return ir.Constant(kind, [value] * 16 if kind is v16i else value)

    return b.and_(pair, bits(0xFFFF0000)) if half else b.shl(pair, bits(16))


Tiles: Any = AmxTiles if has_feature("amx-bf16") else EmulatedTiles


class Lhs(NamedTuple):
    """32 rows of the left-hand side: W, keys or values."""

    tiles: Any
    at: int  # flat index
    part_step: int  # from part to part
    parts: int


class Rhs(NamedTuple):
    """Panels of the right-hand side, an operand."""

    pairs: Any
    at: int
    step: int  # from panel to panel
    part_step: int
    parts: int


class Sums(NamedTuple):
    """The results: 32 rows of float32 per panel, one below the other."""

    rows: Any
    at: int
    step: int


def _block(panels: int, passing: bool) -> Any:
    """Make a function of 32 rows times one or two panels, summed over `steps` times 32 k.

    The eight registers hold 2 x 2 sums, and two tiles of each side. Part i of the left-hand side meets the
    first parts - i of the right-hand side: further products are smaller than what the parts leave out.

    The function takes fresh: the sums begin here, else they go on; and ahead: the flat index of the weights
    that come next, of which every step prefetches `lines` cache lines.

    Args:
        panels: one or two.
        passing: the right-hand side comes from L2 and is not used again soon.
    """

    @intrinsic
    def block(typingctx, fresh, lhs, rhs, sums, steps, ahead, lines):
        def codegen(context, b, sig, args):
            fresh, lhs, rhs, sums, steps, ahead, lines = args
            tiles = Tiles(b)

            def address(operand, index=None):
                array = b.extract_value(args[operand], 0)
                index = b.extract_value(args[operand], 1) if index is None else index
                return b.bitcast(pointer(context, b, sig.args[operand][0], array, index), Pointer)

            def size(operand, field, itemsize):
                return b.mul(b.extract_value(operand, field), ir.Constant(i64, itemsize))

            def moved(base, *terms):
                for step, count in terms:
                    step, count = (ir.Constant(i64, n) if isinstance(n, int) else n for n in (step, count))
                    base = b.gep(base, [b.mul(step, count)])
                return base

            w, x, c, ahead = address(1), address(2), address(3), address(1, ahead)
            w_part_step, w_parts = size(lhs, 2, 2), b.extract_value(lhs, 3)
            x_step, x_part_step, x_parts = size(rhs, 2, 2), size(rhs, 3, 2), b.extract_value(rhs, 4)
            c_step = size(sums, 2, 4)
            results = {2 * r + p: moved(c, (c_step, p), (1024, r)) for r in range(2) for p in range(panels)}
            with b.if_else(fresh) as (begin, go_on):
                with begin:
                    for tile in results:
                        tiles.zero(tile)
                with go_on:
                    for tile, at in results.items():
                        tiles.load(tile, at)
            with cgutils.for_range(b, w_parts) as w_part, cgutils.for_range(b, steps) as k:
                w_k, x_k = moved(w, (w_part_step, w_part.index), (2048, k.index)), moved(x, (1024, k.index))
                # Each load next to the product that needs it: four loads first, and the tile unit waits.
                for p in range(panels):
                    if p == 0:
                        tiles.load(4, w_k)
                    tiles.load(6 + p, moved(x_k, (x_step, p)), passing)
                    tiles.multiply(p, 4, 6 + p)
                    if p == 0:
                        tiles.load(5, moved(w_k, (1024, 1)))
                    tiles.multiply(2 + p, 5, 6 + p)
                more = b.sub(b.sub(x_parts, ir.Constant(i64, 1)), w_part.index)
                with cgutils.for_range(b, more) as part:
                    x_part = moved(x_k, (x_part_step, 1), (x_part_step, part.index))
                    for p in range(panels):
                        tiles.load(6 + p, moved(x_part, (x_step, p)), passing)
                        for r in range(2):
                            tiles.multiply(2 * r + p, 4 + r, 6 + p)
                with cgutils.for_range(b, lines) as line:
                    at = b.add(b.mul(k.index, lines), line.index)
                    hint = [moved(ahead, (64, at)), *(ir.Constant(i32, n) for n in (0, 2, 1))]  # into L2
                    kind = ir.FunctionType(Void, [a.type for a in hint])
                    b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0"), hint)
            for tile, at in results.items():
                tiles.store(tile, at)
            return context.get_dummy_value()

        n = types.intp
        return types.void(types.boolean, lhs, rhs, sums, n, n, n), codegen

    return block


def tiled(array: Any) -> bool:
    """Tell whether a Numba array type is a left-hand side in tiles: weights, keys or values."""
    return array.dtype == types.uint16 and array.ndim >= 5


def _state(method: str, text: str) -> Any:
    def change(typingctx, array):
        def codegen(context, b, sig, args):
            if tiled(sig.args[0]) or compact(sig.args[0]):
                getattr(Tiles(b), method)()
            return context.get_dummy_value()

        return types.void(array), codegen

    change.__doc__ = text
    return intrinsic(change)


# Before the first product of a kernel on this thread, since other libraries have layouts of their own; and
# after the last, since a thread whose tiles are in use costs the system 8 KB at every switch. `array` is a
# left-hand side, or weights in fewer bits; nothing happens if keys or values are not in tiles.
configure = _state("configure", "Lay out this thread's tile registers.")
release = _state("release", "Give this thread's tile registers back.")


def _multiply(passing: bool) -> Any:
    one, two = _block(1, passing), _block(2, passing)

    @inline
    def multiply(fresh, lhs, rhs, panels, sums, steps, lines):
        """Multiply 32 rows by `panels` panels, over `steps` times 32 k (see _block)."""
        for p in range(0, panels, 2):
            ahead = lhs.at + steps * 2 * TILE + p // 2 * lines * steps * 32
            x = Rhs(rhs.pairs, rhs.at + p * rhs.step, rhs.step, rhs.part_step, rhs.parts)
            c = Sums(sums.rows, sums.at + p * sums.step, sums.step)
            if p + 1 < panels:
                two(fresh, lhs, x, c, steps, ahead, lines)
            else:
                one(fresh, lhs, x, c, steps, ahead, lines)

    return multiply


multiply_tiles, multiply_passing = _multiply(False), _multiply(True)


@inline
def rows_of_tiles(w, n, x, panels, c, c_at, c_step):
    """C[p] = rows 32n to 32n + 31 of W times panel p of x, over the whole of K.

    While the panels pass one block of the weights, the next is prefetched, a few cache lines per step.
    """
    steps, parts, part_step = w.shape[1], x.shape[1], x.shape[2] * x.shape[3]
    lines = LINES // max(1, (panels + 1) // 2)
    sums = Sums(c, c_at, c_step)
    for k in range(0, steps, K_BLOCK):
        lhs = Lhs(w, (n * steps + k) * 2 * TILE, 0, 1)
        rhs = Rhs(x, k * TILE, parts * part_step, part_step, parts)
        multiply_passing(k == 0, lhs, rhs, panels, sums, min(K_BLOCK, steps - k), lines)
