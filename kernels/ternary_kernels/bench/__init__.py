"""How fast the kernels are on this host, beside its own ceilings and its peers: ``python -m ternary_kernels.bench``."""
