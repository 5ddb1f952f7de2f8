"""Engines: whatever turns token ids into token ids, and the speaker that asks any of them.

    ENGINES["torch"].open(OpenRequest(Path("runs/quickstart/student"))).speaker.thoughts([example])

Adding an engine takes one file in this folder and one line here. The name is what the command line calls its variants:
`NAME:PLACE`, or `NAME-DEVICE-DTYPE:PLACE` where the entry says that it has these.
"""

from __future__ import annotations

from mmedge.engines.entry import EngineEntry
from mmedge.registry import Registry

ENGINES: Registry[EngineEntry] = Registry(
    "engines",
    {
        "bundle": "mmedge.engines.bundles:ENTRY",
        "native": "mmedge.engines.bundles:NATIVE",
        "onnxruntime": "mmedge.engines.bundles:ONNX",
        "torch": "mmedge.engines.torch_student:ENTRY",
        "optimum": "mmedge.engines.optimum:ENTRY",
        "llama.cpp": "mmedge.engines.llama_cpp:ENTRY",
        "genai": "mmedge.engines.genai:ENTRY",
        "ctranslate2": "mmedge.engines.ctranslate2:ENTRY",
    },
)
