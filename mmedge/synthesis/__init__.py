"""Synthesis: new questions that a teacher writes from a few, for `mmedge synthesize`."""
