"""The ``triton`` kernel: products that read packed weights as they lie, in Triton.

Which kernel runs, and on which tiles, follows from the shape, the number of tokens and the GPU's multiprocessors by the
rules below; nothing is timed or tried out while it runs. A number that a kernel is compiled for (its tiles, not
``n_out`` or ``k_in``) depends on as little of the shape as can be, as each new set of them costs a compilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ternary_kernels.cuda.activations import Quantized
from ternary_kernels.cuda.float_gemm import half_gemm
from ternary_kernels.cuda.float_gemv import half_gemv
from ternary_kernels.cuda.gemm import two_bit_gemm
from ternary_kernels.cuda.gemv import INTERPRETED, two_bit_gemv
from ternary_kernels.cuda.product import Product, Weights

GEMV_TOKENS = 4
"""Most tokens without tensor cores. Each takes a dp4a per four weights: four tokens take 58 of the 64 that an H100's
multiprocessor can issue in a cycle while it gets its share of the memory's bandwidth. More would be slower than memory.
"""

MULTIPROCESSORS = 8
"""What tiles are chosen for where there is no GPU: few, as Triton's interpreter runs one program after the other."""

RESIDENT_PROGRAMS = 32
"""Programs that run on a multiprocessor at the same time at most. Source: CUDA C++ Programming Guide, compute
capability 8.0 and 9.0."""

TILE_VECTORS = {1: 5, 2: 3}
"""Tiles in flight in a GEMV by tokens, 5 for others: as many as fit into registers. A thread's activations for one take
16 registers a token; from three tokens on they are loaded later, see ``two_bit_gemv``."""

WIDTHS = 32, 64, 128
"""Words of a row that a GEMV's warp may read side by side, four to a thread: 128 bytes, a cache line, to all 512."""

HALF_WIDTH = 256
"""Columns of a row that a warp reads side by side in F16, eight to a thread."""

HALF_VECTORS = 5
"""Tiles of each of two rows in flight in F16."""


_DTYPES = torch.int8, torch.uint8, torch.int32, torch.float32
"""Of all that a kernel is given."""

_COMPILED: dict[tuple[object, ...], object] = {}
"""What kernels were compiled for, or are being; a dictionary, whose ``setdefault`` lets one of several threads in."""


class Launch(NamedTuple):
    """How a kernel is started.

    Attributes:
        grid: Programs.
        constants: What the kernel is compiled for.
        warps: Of a program.
        shares: Programs among which the columns are shared.
    """

    grid: tuple[int, ...]
    constants: Mapping[str, int | bool]
    warps: int
    shares: int = 1


class Tile(NamedTuple):
    """A GEMM's tile.

    Attributes:
        rows: Rows of weights.
        tokens: Tokens.
        depth: Packed bytes, or columns of F16, that are multiplied at once.
        stages: Buffers through which they are loaded ahead.
        warps: Of a program.
    """

    rows: int
    tokens: int
    depth: int
    stages: int
    warps: int


TWO_BIT_TILES = (Tile(64, 16, 128, 4, 4), Tile(64, 32, 128, 4, 4), Tile(128, 64, 64, 4, 4), Tile(128, 128, 64, 3, 4))
"""By tokens. Per column a tile reads rows / 4 bytes of weights and a byte of activations for each token, the latter
from the level-2 cache: as the tokens grow, so do the rows, or the cache would be the limit. 64 rows are the least that
a Hopper GPU's matrix instructions take. All fit into the 99 KiB of shared memory of compute capability 8.6 and 8.9."""

HALF_TILES = Tile(64, 16, 64, 4, 4), Tile(128, 64, 64, 3, 8), Tile(128, 128, 64, 3, 8)
"""The same for F16, where each tile is summed twice, see ``half_gemm``."""


def two_bit_gemv_launch(n_out: int, k_in: int, m: int, group_words: int, multiprocessors: int) -> Launch:
    """A GEMV's launch: two rows to a thread, one warp to a program, as nothing then waits for another warp.

    The width is the one that covers a row in the fewest steps, then with the least beyond its end, then the narrowest.
    Where multiprocessors would stay idle, a thread takes one row; where more programs would be made than can run at the
    same time, a program takes four warps.
    """
    words = k_in // 16

    def cover(width: int) -> tuple[int, int, int, int]:
        tiles = _up(words, width)
        steps = _up(tiles, TILE_VECTORS.get(m, 5))
        loads = _up(tiles, steps)
        return steps, steps * loads * width, width, loads

    steps, _, width, loads = min(map(cover, WIDTHS))
    lanes = 128 // width
    rows = 2 if _up(n_out, 2 * lanes) >= multiprocessors else 1
    warps = 4 if _up(n_out, rows * lanes) > RESIDENT_PROGRAMS * multiprocessors else 1
    lanes *= warps
    constants = {
        "GROUP": group_words,
        "TOKENS": m,
        "ROWS": rows,
        "LANES": lanes,
        "WIDTH": width,
        "LOADS": loads,
        "STEPS": steps,
    }
    return Launch((_up(n_out, rows * lanes),), constants, warps)


def two_bit_gemm_launch(n_out: int, k_in: int, m: int, group_bytes: int, multiprocessors: int) -> Launch:
    """A GEMM's launch: the smallest tile that holds the tokens, at most as many as leave no multiprocessor idle.

    Where tiles are fewer than multiprocessors, columns are shared among programs, at least two steps to each. The
    largest tile isn't shared: it is chosen only where its tiles are many.
    """
    tile = next((tile for tile in TWO_BIT_TILES if tile.tokens >= m), TWO_BIT_TILES[-1])
    if tile is TWO_BIT_TILES[-1] and _tiles(tile, n_out, m) < multiprocessors:
        tile = TWO_BIT_TILES[-2]
    row_bytes = k_in // 4
    steps = _up(row_bytes, tile.depth)
    shares = min(multiprocessors // _tiles(tile, n_out, m), steps // 2)
    shares = _up(steps, _up(steps, max(shares, 1)))  # none of them empty
    constants = {
        "GROUP": group_bytes,
        "ROWS": tile.rows,
        "TOKENS": tile.tokens,
        "BYTES": tile.depth,
        "SHARED": shares > 1,
        "STAGES": tile.stages,
    }
    return Launch((_up(m, tile.tokens), _up(n_out, tile.rows), shares), constants, tile.warps, shares)


def half_gemv_launch(n_out: int, k_in: int, m: int) -> Launch:
    """An F16 GEMV's launch: two rows to a program of one warp."""
    tiles = _up(k_in, HALF_WIDTH)
    steps = _up(tiles, HALF_VECTORS)
    constants = {"TOKENS": m, "ROWS": 2, "WIDTH": HALF_WIDTH, "LOADS": _up(tiles, steps), "STEPS": steps}
    return Launch((_up(n_out, 2),), constants, 1)


def half_gemm_launch(n_out: int, m: int) -> Launch:
    """An F16 GEMM's launch: the smallest tile that holds the tokens, or the largest there is."""
    tile = next((tile for tile in HALF_TILES if tile.tokens >= m), HALF_TILES[-1])
    constants = {"ROWS": tile.rows, "TOKENS": tile.tokens, "COLUMNS": tile.depth, "STAGES": tile.stages}
    return Launch((_up(m, tile.tokens), _up(n_out, tile.rows)), constants, tile.warps)


class TritonProduct(Product):
    """What the products have in common: where they run.

    Raises:
        ValueError: As for ``Product``; or the device is no CUDA GPU and Triton's interpreter is off.
    """

    kernel = "triton"
    formats: ClassVar[tuple[str, ...]] = ()
    _launch: Launch

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, device: torch.device | str) -> None:
        super().__init__(format_name, n_out, k_in, m, device)
        on_gpu = self.device.type == "cuda"
        if not on_gpu and not INTERPRETED:
            raise ValueError(f"kernel 'triton': expected a CUDA device, or TRITON_INTERPRET=1, got {self.device}")
        self._multiprocessors = multiprocessors_of(self.device)
        # Triton starts kernels on the current GPU.
        self._on_device = torch.cuda.device(self.device) if on_gpu else nullcontext()
        self._only_compiles = False

    def compile(self) -> None:
        """Compile the kernel for this shape, unless that has been begun for another that takes the same."""
        what = self.format.name, self.m <= GEMV_TOKENS, self._launch.warps, *self._launch.constants.items()
        begun = object()
        if _COMPILED.setdefault(what, begun) is not begun:
            return
        # Compiling looks at the types and the alignment alone of what the kernel is given.
        one = {dtype: torch.empty(2, dtype=dtype, device=self.device) for dtype in _DTYPES}
        weights = Weights(one[torch.uint8], one[torch.float32] if self.format.ternary else None)
        single = one[torch.float32]
        x = Quantized(one[torch.int8], single, one[torch.int32]) if self.format.ternary else single
        self._only_compiles = True
        try:
            self._multiply(x, weights, single)
        finally:
            self._only_compiles = False

    def _run(self, kernel: Any, launch: Launch, *arguments: Tensor | int) -> None:
        # A product and a sum fused would round once, the oracle rounds twice.
        options = {**launch.constants, "num_warps": launch.warps, "enable_fp_fusion": False}
        with self._on_device:
            if self._only_compiles:
                kernel.warmup(*arguments, grid=launch.grid, **options)
            else:
                kernel[launch.grid](*arguments, **options)


class TritonTwoBit(TritonProduct):
    """I2_S weights times int8 activations, on tensor cores from 5 tokens on.

    Calls of one product must follow one another: where columns are shared among programs, these add up in memory of the
    product's own.
    """

    formats = "I2_S", "I2_S_ARM"

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, device: torch.device | str) -> None:
        super().__init__(format_name, n_out, k_in, m, device)
        group = self.format.block // 4
        if m <= GEMV_TOKENS:
            self._launch = two_bit_gemv_launch(n_out, k_in, m, group // 4, self._multiprocessors)
            return
        self._launch = two_bit_gemm_launch(n_out, k_in, m, group, self._multiprocessors)
        tokens, rows, shares = self._launch.grid
        depth = self._launch.constants["BYTES"]
        self._share_bytes = _up(_up(k_in // 4, depth), shares) * depth
        shared = shares > 1
        self._sums = torch.zeros(m * n_out if shared else 1, dtype=torch.int32, device=device)
        self._arrivals = torch.zeros(tokens * rows if shared else 1, dtype=torch.int32, device=device)

    def _multiply(self, x: Quantized, weights: Weights, out: Tensor) -> None:
        assert weights.scales is not None
        given = x.values, x.scale, x.sums, weights.codes, weights.scales, out
        if self.m <= GEMV_TOKENS:
            self._run(two_bit_gemv, self._launch, *given, self.n_out, self.k_in // 16)
            return
        row_bytes = self.k_in // 4
        shared = self._sums, self._arrivals
        self._run(two_bit_gemm, self._launch, *given, *shared, self.n_out, self.m, row_bytes, self._share_bytes)


class TritonHalf(TritonProduct):
    """F16 weights times float activations, as exact as a product in float32; on tensor cores from 5 tokens on.

    There activations must be below 65,520 in magnitude; float16 ones take one multiplication instead of two.
    """

    formats = ("F16",)

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, device: torch.device | str) -> None:
        super().__init__(format_name, n_out, k_in, m, device)
        self._launch = half_gemv_launch(n_out, k_in, m) if m <= GEMV_TOKENS else half_gemm_launch(n_out, m)

    def _multiply(self, x: Tensor, weights: Weights, out: Tensor) -> None:
        halves = weights.codes.view(torch.float16)
        if self.m <= GEMV_TOKENS:
            self._run(half_gemv, self._launch, x, halves, out, self.n_out, self.k_in)
        else:
            self._run(half_gemm, self._launch, x, halves, out, self.n_out, self.m, self.k_in)


def multiprocessors_of(device: torch.device) -> int:
    """Of a GPU; of another device what tiles are chosen for there."""
    if device.type != "cuda":
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _up(size: int, step: int) -> int:
    """Steps that cover a size."""
    return -(-size // step)


def _tiles(tile: Tile, n_out: int, m: int) -> int:
    return _up(m, tile.tokens) * _up(n_out, tile.rows)
