"""Configuration of a model that is to be loaded: header and options, checked."""

from collections.abc import Iterator
from contextlib import contextmanager

from hybridmoe.config import ModelConfig
from hybridmoe.errors import GGUFError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.tensor_table import read_config
from hybridmoe.llm.sampling_defaults import sampling_defaults
from hybridmoe.placement.options import LoadOptions

__all__ = ["naming", "read_model_config"]


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
