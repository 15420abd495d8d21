"""The numpy I2_S kernel against dense float32 ``w @ x``, cold, one thread: ``python tests/benchmarks/kernel_ratio.py``.

Both run in turn in one process at 6912 x 2560, each call on weights that have left the cache, and the ratio of their
medians is printed for m = 1 and 64.
"""

from __future__ import annotations

import time

import numpy as np

from ternary_kernels.activations import quantize
from ternary_kernels.arena import Arena
from ternary_kernels.reference.products import NumpyI2S
from ternary_kernels.team import Team

N_OUT, K_IN = 6912, 2560
REPEATS = 21
COLD_BYTES = 1 << 30


def main() -> None:
    """Print one line per m."""
    rng = np.random.default_rng(0)
    arena = Arena(COLD_BYTES)
    # Dense weights come from memory of their own: a gigabyte of floats, one matrix after the other.
    dense = [rng.standard_normal((N_OUT, K_IN), np.float32) for _ in range(COLD_BYTES // (4 * N_OUT * K_IN))]
    with Team(1) as team:
        for m in (1, 64):
            product = NumpyI2S("I2_S", N_OUT, K_IN, m, team)
            x = rng.standard_normal((m, K_IN), np.float32)
            quantized, columns = quantize(x), np.ascontiguousarray(x.T)
            out = np.empty((m, N_OUT), np.float32)
            ternary_s, dense_s = [], []
            for turn in range(REPEATS + 1):
                weights, floats = arena.take(product.size_bytes), dense[turn % len(dense)]
                start = time.perf_counter()
                product(quantized, weights, out)
                middle = time.perf_counter()
                floats @ columns
                end = time.perf_counter()
                if turn:  # the first turn warms the code up
                    ternary_s.append(middle - start)
                    dense_s.append(end - middle)
            ours, theirs = np.median(ternary_s), np.median(dense_s)
            quartiles = " to ".join(f"{value * 1e3:.2f}" for value in np.quantile(ternary_s, [0.25, 0.75]))
            print(
                f"m = {m:2d}: I2_S {ours * 1e3:.2f} ms (quartiles {quartiles}), dense float32 {theirs * 1e3:.2f} ms, "
                f"ratio {ours / theirs:.2f}"
            )


if __name__ == "__main__":
    main()
