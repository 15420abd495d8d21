"""Whether a saved result still holds on this host, and what has changed where it doesn't. Light: loaders ask it."""
