"""The per-host cache of results. Entry points: `cache.read`, `cache.write`."""
