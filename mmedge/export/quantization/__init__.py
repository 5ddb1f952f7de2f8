"""Quantization: formats of few bits, how weights are brought into them, and which precisions there are."""
