"""Bench: accuracy, latency, memory and size of variants, measured so that they can be compared."""
