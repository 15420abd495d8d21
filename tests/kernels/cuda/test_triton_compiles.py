"""What the compiler makes of Triton's kernels for GPUs that need not be there: what they are fast by, read from it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Of a program at most. Source: CUDA C++ Programming Guide, compute capabilities."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came of each kernel and GPU, by name: compiled in another process, where the interpreter is off."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "kernels"),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).with_name("compile_kernels.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def those(found, start, *capabilities):
    """Kernels whose name starts so, for these GPUs; some there must be."""
    ends = tuple(f"sm_{capability}" for capability in capabilities)
    chosen = {name: kernel for name, kernel in found.items() if name.startswith(start) and name.endswith(ends)}
    assert chosen
    return chosen.items()


def count(kernel, start):
    return sum(instruction.startswith(start) for instruction in kernel["instructions"])


def capability_of(name):
    return int(name.rpartition("_")[2])


def test_no_kernel_spills_registers(found):
    """But for a word or two on compute capability 8.x, where the compiler makes room for another program."""
    spilled = {name: kernel["spilled"] for name, kernel in found.items()}
    assert {name: size for name, size in spilled.items() if size > (0 if capability_of(name) == 90 else 16)} == {}


def test_every_kernel_fits_into_shared_memory(found):
    for name, kernel in found.items():
        assert kernel["shared_bytes"] <= SHARED_BYTES[capability_of(name)], name


def test_gemv_multiplies_four_codes_at_once_and_nothing_else(found):
    """One dp4a per word, pair of bits and token, counted in the machine's instructions: none is repeated or lost."""
    for name, kernel in those(found, "gemv", 80, 90):
        constants = kernel["constants"]
        words = 4 * constants["ROWS"] * constants["LOADS"]
        assert count(kernel, "IDP.4A.U8.S8") == words * 4 * constants["TOKENS"], name


def test_gemv_loads_weights_16_bytes_at_a_time_past_the_cache(found):
    for name, kernel in those(found, "gemv", 80, 90):
        constants = kernel["constants"]
        loads = re.findall(r"ld\.global\.L1::evict_first\S*", kernel["ptx"])
        assert len(loads) == constants["ROWS"] * constants["LOADS"], name
        assert all(load.endswith(".v4.b32") for load in loads), name


def test_gemv_has_all_weights_of_a_step_in_flight_before_it_multiplies(found):
    """In the order of the machine's instructions, which the assembler chooses."""
    for name, kernel in those(found, "gemv", 80, 90):
        instructions = kernel["instructions"]
        first = next(place for place, each in enumerate(instructions) if each.startswith("IDP.4A"))
        loads = [place for place, each in enumerate(instructions) if each.startswith("LDG.E.EF.128")]
        constants = kernel["constants"]
        assert len(loads) == constants["ROWS"] * constants["LOADS"], name
        assert max(loads) < first, name


def test_gemv_exchanges_nothing_between_threads_but_the_sums_of_a_row(found):
    for name, kernel in those(found, "gemv", 80, 90):
        constants = kernel["constants"]
        assert kernel["shared_bytes"] <= 4 * constants["LANES"], name
        shuffled = count(kernel, "SHFL") + count(kernel, "REDUX")
        assert shuffled <= 5 * constants["ROWS"] * constants["TOKENS"], name


def test_gemm_multiplies_on_integer_tensor_cores(found):
    for name, kernel in those(found, "gemm", 80, 89):
        assert "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32" in kernel["ptx"], name
    for name, kernel in those(found, "gemm", 90):
        tokens = kernel["constants"]["TOKENS"]
        assert f"wgmma.mma_async.sync.aligned.m64n{tokens}k32.s32.s8.s8" in kernel["ptx"], name
        assert "mma.sync.aligned.m16" not in kernel["ptx"], name


def test_gemm_unpacks_in_registers(found):
    """Nothing unpacked goes through shared memory: in the loop it is only filled by copies from global memory."""
    for name, kernel in those(found, "gemm", 80, 89, 90):
        assert re.findall(r"cp\.async\.cg\.shared\.global[^;]*0x10", kernel["ptx"]), name
        last = max(place for place, each in enumerate(kernel["instructions"]) if re.match(r"I(G)?MMA", each))
        assert not any(each.startswith("STS") for each in kernel["instructions"][:last]), name


def test_gemm_unpacks_four_codes_at_once(found):
    """A shift and a mask for four codes: the packed tile's bytes are never taken one by one."""
    for name, kernel in those(found, "gemm", 80, 89, 90):
        constants = kernel["constants"]
        words = constants["ROWS"] * constants["BYTES"] // (4 * 128)
        assert kernel["ptx"].count("0x03030303") == 4 * words, name
        assert count(kernel, "PRMT") < words, name


def test_gemm_shares_columns_by_integer_atomics_only_where_it_says_so(found):
    for name, kernel in those(found, "gemm", 80, 89, 90):
        assert (
            bool(re.search(r"(red|atom)\S*\.add\S*\.s32|atom\S*\.exch", kernel["ptx"])) == kernel["constants"]["SHARED"]
        ), name


def test_scores_are_divided_as_ieee_says(found):
    """Not by an approximate reciprocal, and not fused with what follows."""
    for start in ("gemv", "gemm"):
        for name, kernel in those(found, start, 80, 90):
            assert "div.rn.f32" in kernel["ptx"], name
            assert "div.full.f32" not in kernel["ptx"], name
            assert "fma.rn.f32" not in kernel["ptx"], name


def test_half_gemv_loads_weights_16_bytes_at_a_time_and_adds_in_float32(found):
    for name, kernel in those(found, "half gemv", 90):
        constants = kernel["constants"]
        assert count(kernel, "LDG.E.EF.128") == constants["ROWS"] * constants["LOADS"], name
        assert kernel["ptx"].count("fma.rn.f32") == 8 * constants["ROWS"] * constants["LOADS"] * constants["TOKENS"], (
            name
        )
        assert kernel["shared_bytes"] == 0, name


def test_half_gemm_multiplies_on_tensor_cores_and_adds_in_float32(found):
    for name, kernel in those(found, "half gemm", 80, 89, 90):
        wide = kernel["constants"]["TOKENS"] >= 64 and capability_of(name) == 90
        assert ("wgmma.mma_async" in kernel["ptx"]) == wide, name
        assert re.search(r"mma\S*\.f32\.f16\.f16", kernel["ptx"]), name


def test_rounding_in_quantisation_is_neither_fused_nor_folded_away(found):
    for name in ("quantize", "norm True", "silu", "relu2", "gelu"):
        (_, kernel), *_ = those(found, name, 90)
        assert kernel["ptx"].count("0f4B400000") >= 2, name
        assert kernel["ptx"].count("0fCB400000") >= 1 or "sub" in kernel["ptx"], name
        assert "fma.rn.f32" not in kernel["ptx"], name


def test_attention_multiplies_on_tensor_cores_and_loads_16_bytes_at_a_time(found):
    for name, kernel in those(found, "attend", 90):
        assert re.search(r"mma\S*\.f32\.f16\.f16", kernel["ptx"]), name
        assert re.findall(r"cp\.async\.cg\.shared\.global[^;]*0x10", kernel["ptx"]), name


AHEAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from ternary_kernels.cuda import triton_products
from ternary_kernels.cuda.activations import Quantized
from ternary_kernels.cuda.product import get_product

class NoGpu:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

driver.set_active(NoGpu())
triton_products.INTERPRETED = True  # tensors on the host stand in for those on a GPU
triton_products.MULTIPROCESSORS = 132

def compiled():
    kernels = triton_products.two_bit_gemv, triton_products.two_bit_gemm, triton_products.half_gemm
    return [len(kernel.device_caches[0][0]) for kernel in kernels]

SIZES = [("I2_S", 640, 512, 1), ("I2_S", 640, 512, 8), ("I2_S", 640, 512, 16), ("F16", 640, 512, 8)]
products = [get_product("triton", size[0])(*size, "cpu") for size in SIZES]
with ThreadPoolExecutor(3) as threads:
    list(threads.map(lambda product: product.compile(), products + products))
print(*compiled())
for product in products:
    x = torch.zeros(product.m, product.k_in)
    scale, sums = torch.ones(product.m), torch.zeros(product.m, dtype=torch.int32)
    x = Quantized(x.to(torch.int8), scale, sums) if product.format.ternary else x
    product._only_compiles = True  # what a call would start
    weights = product.window(torch.zeros(product.code_bytes, dtype=torch.uint8))
    product(x, weights, torch.empty(product.m, product.n_out))
print(*compiled())
"""


def test_what_is_compiled_ahead_is_what_a_call_runs(tmp_path):
    """Each kernel once, whatever the number of threads; 8 and 16 tokens take the same one. No GPU is asked."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels"), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", AHEAD], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 1 1", "1 1 1"]
