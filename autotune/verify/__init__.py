"""The honest exam of a decision: a grid of configurations is measured, and the chosen one compared with the best."""
