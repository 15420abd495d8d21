"""Products over ternary weights on a GPU, in torch's operations and in Triton; needs torch, but for ``support``.

Everything here also runs on torch's CPU device, Triton's kernels in its interpreter.
"""
