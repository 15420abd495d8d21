"""Records of tunes that CI jobs keep. Entry points: `condense.history_record`, `store.write`, `store.read_tree`."""
