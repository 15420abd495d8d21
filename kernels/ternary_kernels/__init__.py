"""Ternary weight formats and the matrix products over them: formats, oracle, CPU kernels.

Never imports ``autotune``.
"""
