"""The native engine: bundles' layer plans, interpreted on the CPU by a library of mmedge's own (`src/`), without ONNX Runtime."""
