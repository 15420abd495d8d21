"""CPU kernels as machine code: LLVM IR written with llvmlite, one version per instruction set, cached on disk."""
