"""Quantization: low-bit formats, how weights are converted to them, and the precisions."""
