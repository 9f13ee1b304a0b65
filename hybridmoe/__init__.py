"""hybridmoe runs trillion-parameter mixture-of-experts models on one workstation.

    import hybridmoe

    with hybridmoe.load() as llm:  # the embedded model; or load("model.gguf")
        print(llm.chat([{"role": "user", "content": "Hello"}], temperature=0).text)

Names are imported when they are first used: importing the package alone costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridmoe.config import EngineConfig
    from hybridmoe.engine.sampling_params import SamplingParams
    from hybridmoe.errors import (
        ClusterError,
        ConfigError,
        ContextLengthError,
        DiskError,
        GGUFError,
        HybridMoeError,
        QueueFullError,
        ShapeError,
        TemplateError,
        UnsupportedModelError,
    )
    from hybridmoe.llm.llm import LLM
    from hybridmoe.llm.load import load
    from hybridmoe.llm.progress import Progress
    from hybridmoe.llm.result import Piece, Result, ResultStream, Timing
    from hybridmoe.llm.serve_experts import serve_experts
    from hybridmoe.placement.options import LoadOptions

    __version__: str

__all__ = [
    "LLM",
    "ClusterError",
    "ConfigError",
    "ContextLengthError",
    "DiskError",
    "EngineConfig",
    "GGUFError",
    "HybridMoeError",
    "LoadOptions",
    "Piece",
    "Progress",
    "QueueFullError",
    "Result",
    "ResultStream",
    "SamplingParams",
    "ShapeError",
    "TemplateError",
    "Timing",
    "UnsupportedModelError",
    "load",
    "serve_experts",
]

_HOMES = {
    "hybridmoe.config": ("EngineConfig",),
    "hybridmoe.engine.sampling_params": ("SamplingParams",),
    "hybridmoe.errors": tuple(name for name in __all__ if name.endswith("Error")),
    "hybridmoe.llm.result": ("Piece", "Result", "ResultStream", "Timing"),
    "hybridmoe.llm.llm": ("LLM",),
    "hybridmoe.llm.progress": ("Progress",),
    "hybridmoe.llm.load": ("load",),
    "hybridmoe.llm.serve_experts": ("serve_experts",),
    "hybridmoe.placement.options": ("LoadOptions",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        metadata = import_module("importlib.metadata")  # takes as long as all of Python's start
        return metadata.version("hybridmoe")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'hybridmoe' has no attribute {name!r}")
