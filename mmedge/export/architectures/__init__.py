"""Architectures: each writes the ONNX graphs of one family of models from config and weights."""
