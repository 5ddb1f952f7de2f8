"""ONNX Runtime: mmedge's own graphs and those of optimum."""
