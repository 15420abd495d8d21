"""The peer: ggml's own CPU products, called in its shared library through ctypes.

Fairness: graph, plan and threads are made beforehand, so that a call does what ``llama.cpp`` does per product and no
more; its thread pool is pinned to the CPUs that our team is pinned to, and sleeps while others are timed; weights come
from the same memory. A call quantises its activations, as ours does.

Source: ggml 0.20.2, include/ggml.h and include/ggml-cpu.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

PACKAGE = "libggml"
"""The import package of the distribution ``libggml-python``, which holds ggml's libraries."""


class Layout(NamedTuple):
    """How ggml stores a type: its number, and values and bytes of a block."""

    number: int
    block: int
    block_bytes: int


TYPES = {
    "TQ2_0": Layout(35, 256, 66),
    "TQ1_0": Layout(34, 256, 54),
    "IQ2_S": Layout(22, 256, 82),
    "F16": Layout(1, 1, 2),
    "Q8_0": Layout(8, 32, 34),
    "Q6_K": Layout(14, 256, 210),
}
"""What is timed of ggml, by format names. Types 36 to 39, I2_S to TL2 in BitNet files, mean nothing or others in it."""

_F32 = 0
_MAX_CPUS = 512
_POLL = 50
"""ggml's default: waiting threads spin for a while before they sleep."""

_FEATURES = {
    "avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx_vnni": "avx_vnni", "avx512": "avx512f",
    "avx512_vbmi": "avx512vbmi", "avx512_vnni": "avx512_vnni", "avx512_bf16": "avx512_bf16", "amx_int8": "amx_int8",
    "neon": "asimd", "dotprod": "asimddp", "matmul_int8": "i8mm", "sve": "sve",
}  # fmt: skip
"""Instruction sets that a build may use: ggml's name, and Linux' for the CPU's."""


class PeerError(Exception):
    """ggml can't be used here; the message says why in a sentence."""


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
    )  # more follows, which only ggml touches


class _Plan(ctypes.Structure):
    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("reserve", ctypes.c_uint8 * 128),  # the rest, and room for what a later version may add to it
    )


class _PoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * _MAX_CPUS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
        ("reserve", ctypes.c_uint8 * 64),
    )


_TensorPointer = ctypes.POINTER(_Tensor)
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_silence = _LogCallback(lambda *message: None)  # noqa: ARG005 - what it is called with

_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "ggml_version": (ctypes.c_char_p, ()),
    "ggml_log_set": (None, (_LogCallback, ctypes.c_void_p)),
    "ggml_cpu_init": (None, ()),
    "ggml_blck_size": (ctypes.c_int64, (ctypes.c_int,)),
    "ggml_type_size": (ctypes.c_size_t, (ctypes.c_int,)),
    "ggml_tensor_overhead": (ctypes.c_size_t, ()),
    "ggml_graph_overhead": (ctypes.c_size_t, ()),
    "ggml_init": (ctypes.c_void_p, (_InitParams,)),
    "ggml_free": (None, (ctypes.c_void_p,)),
    "ggml_new_tensor_2d": (_TensorPointer, (ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)),
    "ggml_mul_mat": (_TensorPointer, (ctypes.c_void_p, _TensorPointer, _TensorPointer)),
    "ggml_get_data": (ctypes.c_void_p, (_TensorPointer,)),
    "ggml_new_graph": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "ggml_build_forward_expand": (None, (ctypes.c_void_p, _TensorPointer)),
    "ggml_graph_plan": (_Plan, (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)),
    "ggml_graph_compute": (ctypes.c_int, (ctypes.c_void_p, ctypes.POINTER(_Plan))),
    "ggml_threadpool_params_init": (None, (ctypes.POINTER(_PoolParams), ctypes.c_int)),
    "ggml_threadpool_new": (ctypes.c_void_p, (ctypes.POINTER(_PoolParams),)),
    "ggml_threadpool_free": (None, (ctypes.c_void_p,)),
    "ggml_threadpool_pause": (None, (ctypes.c_void_p,)),
}


class Ggml:
    """A loaded ggml library whose structures are laid out as this module declares them.

    Args:
        cpus: Logical CPUs to pin threads to.
        folder: Where its libraries lie, or a folder above; None looks for the package ``libggml``. Of several builds
            of the CPU backend the one is taken that rates itself best for this CPU.

    Attributes:
        version: ggml's version.
        features: Instruction sets that this build uses.

    Raises:
        PeerError: There is no library, it can't be loaded, it is another ggml than this module knows, or it can't
            pin threads to such CPUs.
    """

    def __init__(self, cpus: Sequence[int], folder: Path | None = None) -> None:
        if max(cpus) >= _MAX_CPUS:
            raise PeerError(f"ggml: expected CPUs below {_MAX_CPUS}, which its masks end at, got {max(cpus)}")
        self._cpus = cpus
        self.library = _load(_find(folder))
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(self.library, name)
            except AttributeError:
                raise PeerError(f"ggml: expected a library with {name}, got one without") from None
            function.restype, function.argtypes = result, arguments
        self.library.ggml_log_set(_silence, None)
        self.library.ggml_cpu_init()
        self._check_layout()
        self.version: str = self.library.ggml_version().decode(errors="replace")
        self.features = tuple(name for name in _FEATURES if self._has(name))

    def unused(self, cpu_flags: Collection[str]) -> tuple[str, ...]:
        """Instruction sets that this CPU has and this build does without.

        Args:
            cpu_flags: What the CPU has, as Linux names it.
        """
        return tuple(name for name, flag in _FEATURES.items() if flag in cpu_flags and name not in self.features)

    def _has(self, feature: str) -> bool:
        function = getattr(self.library, f"ggml_cpu_has_{feature}", None)
        return function is not None and bool(function())

    def _check_layout(self) -> None:
        """Compare what the library says of itself with what is declared here, before anything relies on it."""
        for name, layout in TYPES.items():
            got = self.library.ggml_blck_size(layout.number), self.library.ggml_type_size(layout.number)
            if got != layout[1:]:
                raise PeerError(f"ggml: expected {layout[1:]} values and bytes in a block of {name}, got {got}")
        context = self.context()
        try:
            tensor = self.library.ggml_new_tensor_2d(context, _F32, 24, 3)
            tensor.contents.data = 0x1000
            held = tensor.contents
            seen = held.type, tuple(held.ne), tuple(held.nb), self.library.ggml_get_data(tensor)
        finally:
            self.library.ggml_free(context)
        if seen != (_F32, (24, 3, 1, 1), (4, 96, 288, 288), 0x1000):
            raise PeerError(f"ggml {self.library.ggml_version().decode()}: its tensors are not laid out as in 0.20")
        params = self._pool_params(3)
        if params.n_threads != 3 or params.poll > 100 or any(params.cpumask) or params.paused:
            raise PeerError(f"ggml {self.library.ggml_version().decode()}: its threads are not set up as in 0.20")

    def context(self) -> int:
        """Memory for three tensors and a graph, but not for their data; to be freed."""
        size = 4 * self.library.ggml_tensor_overhead() + self.library.ggml_graph_overhead()
        context: int | None = self.library.ggml_init(_InitParams(size, None, True))
        if context is None:
            raise MemoryError("ggml: no memory for a graph")
        return context

    def _pool_params(self, threads: int) -> _PoolParams:
        params = _PoolParams()
        self.library.ggml_threadpool_params_init(ctypes.byref(params), threads)
        return params

    def pool(self, threads: int) -> Pool:
        """Threads that are pinned to the first CPUs, each to its own; the calling thread is one of them."""
        params = self._pool_params(threads)
        for cpu in self._cpus[:threads]:
            params.cpumask[cpu] = True
        params.strict_cpu, params.paused, params.poll = True, True, _POLL
        return Pool(self, params)


class Pool:
    """ggml's threads; a context manager that ends them.

    Args:
        ggml: The library.
        params: With which they are started, asleep.
    """

    def __init__(self, ggml: Ggml, params: _PoolParams) -> None:
        self.threads: int = params.n_threads
        self.handle: int = ggml.library.ggml_threadpool_new(ctypes.byref(params))
        self._library = ggml.library
        self._caller_cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

    def rest(self) -> None:
        """Put the threads to sleep until the next product, and the calling thread back where it was pinned.

        Without it they would spin beside whatever is timed next, and ggml would keep the caller on the last CPU.
        """
        self._library.ggml_threadpool_pause(self.handle)
        if self._caller_cpus is not None:
            os.sched_setaffinity(0, self._caller_cpus)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()
        self._library.ggml_threadpool_free(self.handle)


class Product:
    """y = x @ w.T in ggml: a graph of one ``mul_mat``, planned once, computed per call.

    Args:
        ggml: The library.
        pool: The threads that share the rows.
        format_name: One of ``TYPES``.
        n_out: Rows of the weight matrix.
        x: float32 activations, shape (m, k_in), C-contiguous; read at every call.
        out: float32, shape (m, n_out), C-contiguous; overwritten at every call.

    Attributes:
        size_bytes: Of the packed weights.

    Raises:
        ValueError: The type can't hold that shape.
    """

    def __init__(
        self,
        ggml: Ggml,
        pool: Pool,
        format_name: str,
        n_out: int,
        x: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> None:
        layout, (m, k_in) = TYPES[format_name], x.shape
        if k_in % layout.block:
            raise ValueError(f"ggml's {format_name} needs k_in to be a multiple of {layout.block}, got {k_in}")
        self.size_bytes = n_out * k_in // layout.block * layout.block_bytes
        self._library, self._x, self._out = ggml.library, x, out
        self._context = ggml.context()
        weights = ggml.library.ggml_new_tensor_2d(self._context, layout.number, k_in, n_out)
        activations = ggml.library.ggml_new_tensor_2d(self._context, _F32, k_in, m)
        product = ggml.library.ggml_mul_mat(self._context, weights, activations)
        activations.contents.data, product.contents.data = x.ctypes.data, out.ctypes.data
        self._weights = weights.contents
        self._graph = ggml.library.ggml_new_graph(self._context)
        ggml.library.ggml_build_forward_expand(self._graph, product)
        plan = ggml.library.ggml_graph_plan(self._graph, pool.threads, pool.handle)
        self._work = np.empty(plan.work_size, np.uint8)
        plan.work_data = self._work.ctypes.data
        self._plan, self._plan_pointer = plan, ctypes.byref(plan)

    def __call__(self, weights: NDArray[np.uint8]) -> None:
        """Multiply by packed weights, shape (size_bytes,), C-contiguous.

        Raises:
            RuntimeError: ggml reports a failure.
        """
        self._weights.data = weights.ctypes.data
        status = self._library.ggml_graph_compute(self._graph, self._plan_pointer)
        if status:
            raise RuntimeError(f"ggml_graph_compute: expected status 0, got {status}")

    def close(self) -> None:
        """Free the graph."""
        self._library.ggml_free(self._context)


def _find(folder: Path | None) -> list[Path]:
    """All builds of the CPU backend below a folder."""
    if folder is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise PeerError(f"ggml is not installed: pip install {PACKAGE}-python to time it too")
        folder = Path(spec.submodule_search_locations[0])
    found = sorted(path for path in folder.rglob("libggml-cpu*") if path.suffix in (".so", ".dylib"))
    if not found:
        raise PeerError(f"ggml: expected libggml-cpu*.so in {folder}, got none")
    return found


def _load(paths: Sequence[Path]) -> ctypes.CDLL:
    """The build that rates itself best for this CPU; a library of one build doesn't rate itself."""
    best: tuple[int, ctypes.CDLL] | None = None
    fault = ""
    for path in paths:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            fault = f": {error}"
            continue
        rate = getattr(library, "ggml_backend_score", None)
        score = rate() if rate is not None else 1
        if score and (best is None or score > best[0]):
            best = score, library
    if best is None:
        raise PeerError(f"ggml: none of {len(paths)} builds of its CPU backend runs here{fault}")
    return best[1]
