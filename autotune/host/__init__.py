"""What may be used of this host: CPU, memory, GPUs, limits; its fingerprint and its tier. Entry: `detect.detect`."""
