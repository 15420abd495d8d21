"""Whether one version of autotune is slower than another: both run in turns, or records of both are compared."""
