"""Runs configurations end to end: what predictions are proven by."""
