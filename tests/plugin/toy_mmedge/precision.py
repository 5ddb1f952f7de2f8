"""A precision: int8 in blocks of 64 inputs."""

from mmedge.export.quantization.formats import WeightFormat
from mmedge.export.quantization.precisions import Precision

INT8_IN_64 = Precision(
    "int8-b64",
    "ONNX with weights in int8, a scale for 64 inputs.",
    WeightFormat(8, 64),
    arithmetic="int8",
    least_agreement=0.9,
    finer="fp32",
)
