"""File of a model that is to be loaded, and its configuration: header and options, checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridmoe.config import ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.errors import GGUFError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.tensor_table import read_config
from hybridmoe.hardware.topology import current
from hybridmoe.llm.sampling_defaults import sampling_defaults
from hybridmoe.placement.options import LoadOptions

__all__ = ["naming", "open_model", "read_model_config"]


def open_model(path: str | Path | None) -> GGUFFile:
    """Map a model's file as this machine's nodes need it; None = the embedded model's."""
    file = GGUFFile.open(demo_path() if path is None else path)
    if len(current().nodes) > 1:
        file.avoid_huge_pages()
    return file


def read_model_config(file: GGUFFile, options: LoadOptions) -> ModelConfig:
    """Read and check metadata and tensor names. Errors: GGUFError, ConfigError."""
    with naming(file):
        sampling_defaults(file.metadata)  # before weights are read, which takes minutes
        config = read_config(file.metadata, file.tensors)
        return config.with_yarn_betas(options.yarn_beta_fast, options.yarn_beta_slow)


@contextmanager
def naming(file: GGUFFile) -> Iterator[None]:
    """Name the file in errors about its contents."""
    try:
        yield
    except GGUFError as error:
        raise type(error)(f"{file.path.name}: {error}") from None
