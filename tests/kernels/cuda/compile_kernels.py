"""Compile every Triton kernel for GPUs that need not be there; print what came of it, as JSON by kernel and GPU.

A program of its own: where Triton's interpreter is on, as in the other tests, nothing is compiled.
"""

import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ternary_kernels.cuda import attention_kernels, layer_kernels
from ternary_kernels.cuda.float_gemm import half_gemm
from ternary_kernels.cuda.float_gemv import half_gemv
from ternary_kernels.cuda.gemm import two_bit_gemm
from ternary_kernels.cuda.gemv import two_bit_gemv
from ternary_kernels.cuda.triton_products import (
    half_gemm_launch,
    half_gemv_launch,
    two_bit_gemm_launch,
    two_bit_gemv_launch,
)

H100 = 132
"""Multiprocessors."""
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TYPES = {
    "sums": "*i32",
    "codes": "*u8",
    "shared_sums": "*i32",
    "arrivals": "*i32",
    "weights": "*fp16",
    "keys": "*fp16",
    "rotated": "*fp16",
}
SIZES = {
    "n_out": 2560,
    "k_in": 2560,
    "words": 160,
    "row_bytes": 640,
    "share_bytes": 256,
    "columns": 2560,
    "head_dim": 128,
    "share": 128,
    "gated_stride": 13824,
    "up_stride": 13824,
    "query_stride": 3840,
    "key_stride": 3840,
    "value_stride": 3840,
    "token_stride": 128,
    "head_stride": 1 << 17,
}
ODD = {
    "m": "i32",
    "heads": "i32",
    "kv_heads": "i32",
    "half": "i32",
    "epsilon": "fp32",
    "factor": "fp32",
    "tokens": "i32",
    "capacity": "i32",
    "shares": "i32",
}


def cases():
    """Name, kernel, launch, type of floating-point activations, compute capabilities."""
    for n_out, k_in, m, group, capabilities in (
        (2560, 2560, 1, 8, (80, 90)),
        (2560, 2560, 1, 4, (90,)),
        (640, 2560, 1, 8, (90,)),
        (4096, 14336, 1, 8, (90,)),
        (28672, 4096, 1, 8, (90,)),
        (2560, 2560, 2, 8, (90,)),
        (2560, 6912, 4, 8, (80, 90)),
        (4096, 14336, 4, 8, (90,)),
    ):
        launch = two_bit_gemv_launch(n_out, k_in, m, group, H100)
        yield f"gemv {n_out}x{k_in} m={m} group={group}", two_bit_gemv, launch, "fp32", capabilities
    for n_out, m, group, capabilities in (
        (2560, 16, 32, (80, 90)),
        (2560, 16, 16, (90,)),
        (6912, 32, 32, (90,)),
        (2560, 64, 32, (89, 90)),
        (13824, 64, 32, (90,)),
        (13824, 512, 32, (80, 89, 90)),
    ):
        launch = two_bit_gemm_launch(n_out, 2560, m, group, H100)
        yield f"gemm {n_out}x2560 m={m} group={group}", two_bit_gemm, launch, "fp32", capabilities
    for m, kind in ((1, "fp32"), (4, "fp32"), (4, "fp16")):
        yield f"half gemv m={m} {kind}", half_gemv, half_gemv_launch(128256, 2560, m), kind, (90,)
    for m, kind, capabilities in (
        (16, "fp32", (90,)),
        (64, "fp32", (90,)),
        (256, "fp32", (89, 90)),
        (256, "fp16", (90,)),
    ):
        yield f"half gemm m={m} {kind}", half_gemm, half_gemm_launch(128256, m), kind, capabilities


def layer_cases():
    block = {"BLOCK": 4096}
    yield "quantize", layer_kernels.quantize_kernel, block, 8
    for quantized in (True, False):
        norm = block | {"ADD": True, "QUANTIZED": quantized}
        yield f"norm {quantized}", layer_kernels.norm_kernel, norm, 8
    for activation in ("silu", "relu2", "gelu"):
        gate = {"BLOCK": 16384, "ACTIVATION": activation, "NORMED": True, "QUANTIZED": True}
        yield activation, layer_kernels.gate_kernel, gate, 32
    yield "plain", layer_kernels.gate_kernel, gate | {"NORMED": False, "QUANTIZED": False}, 32
    shape = {"GROUP": 4, "ROWS": 16, "DIM": 128, "BLOCK": 64}
    for shared in (False, True):
        yield f"attend {shared}", attention_kernels.attend_kernel, shape | {"SHARED": shared}, 4
    yield "join", attention_kernels.join_kernel, {"SHARES": 64, "DIM": 128}, 4
    yield "rotate", layer_kernels.rotate_kernel, {"BLOCK": 64}, 1


def compiled(kernel, constants, warps, kind, capability):
    names = kernel.arg_names
    signature = {}
    attributes = {}
    for index, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in ODD:
            signature[name] = ODD[name]
        else:  # what torch allocates, and the sizes of real models, are multiples of 16
            into = "*i8" if constants.get("QUANTIZED") else "*fp32"
            known = TYPES | {"x": f"*{kind}", "values": "*fp16" if "keys" in names else "*i8", "into": into}
            signature[name] = "i32" if name in SIZES else known.get(name, "*fp32")
            attributes[index,] = [["tt.divisibility", 16]]
    by_index = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=by_index, attrs=attributes)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def facts(key):
    kernel, constants, warps, kind = JOBS[key]
    binary = compiled(kernel, constants, warps, kind, key[1])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = tool("cuobjdump", "--dump-resource-usage", file.name)
        listing = tool("nvdisasm", "-c", file.name)
    instructions = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", listing, re.MULTILINE)
    return {
        "constants": constants,
        "registers": number("REG", usage),
        "spilled": number("STACK", usage) + number("LOCAL", usage),
        "shared_bytes": binary.metadata.shared,
        "instructions": instructions,
        "ptx": binary.asm["ptx"],
    }


def tool(name, *arguments):
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def number(what, usage):
    return int(re.search(rf"\b{what}:(\d+)", usage)[1])


JOBS = {
    (name, capability): (kernel, dict(launch.constants), launch.warps, kind)
    for name, kernel, launch, kind, capabilities in cases()
    for capability in capabilities
} | {(name, 90): (kernel, constants, warps, "fp32") for name, kernel, constants, warps in layer_cases()}


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(facts, JOBS, chunksize=1)
    json.dump(
        {f"{name} sm_{capability}": each for (name, capability), each in zip(JOBS, found, strict=True)}, sys.stdout
    )
