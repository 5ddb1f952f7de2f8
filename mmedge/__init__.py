"""mmedge: distil a large teacher into a small student, export it to int8 ONNX, measure it, run it at the edge.

Importing the package loads nothing heavy; each verb of the command line is one function in the room of that name.
"""

__version__ = "0.1.0"
