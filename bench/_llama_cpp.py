"""llama.cpp as a peer, through llama-cpp-python's low-level API.

`Llama()` cannot switch `use_extra_bufts` off (0.3.36 aborts with it on AMX machines for split-MLA
files) and replaces a model's YaRN betas by 32 and 1; both are set here as the caller says.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import llama_cpp.llama_cpp as api
import numpy as np
from numpy.typing import NDArray

__all__ = ["LlamaCpp"]

_silent = api.llama_log_callback(lambda level, text, data: None)


class LlamaCpp:
    """One model and one sequence on the CPU."""

    def __init__(
        self,
        path: Path,
        *,
        context_tokens: int,
        num_threads: int = 2,
        batch_tokens: int = 512,
        use_extra_bufts: bool = False,
        yarn_betas: tuple[float, float] | None = None,
        exact_attention: bool = False,
    ) -> None:
        api.llama_log_set(_silent, ctypes.c_void_p(0))
        api.llama_backend_init()
        model_params = api.llama_model_default_params()
        model_params.use_extra_bufts = use_extra_bufts
        model_params.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = api.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_threads = params.n_threads_batch = num_threads
        if yarn_betas is not None:
            params.yarn_beta_fast, params.yarn_beta_slow = yarn_betas
        if exact_attention:  # flash attention and the default cache round to float16
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.type_k = params.type_v = api.GGML_TYPE_F32
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context for {path}")
        vocabulary = api.llama_model_get_vocab(self._model)
        self._vocab_size = api.llama_vocab_n_tokens(vocabulary)
        self._batch_tokens = batch_tokens
        self._num_past = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        api.llama_free(self._context)
        api.llama_model_free(self._model)

    def reset(self) -> None:
        """Forget the sequence."""
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        self._num_past = 0

    def save(self, path: Path, token_ids: Sequence[int]) -> None:
        """Write the state of the sequence, whose tokens these are, to a file."""
        tokens = (api.llama_token * len(token_ids))(*token_ids)
        if not api.llama_state_seq_save_file(
            self._context, str(path).encode(), 0, tokens, len(token_ids)
        ):
            raise RuntimeError(f"llama.cpp cannot save to {path}")

    def restore(self, path: Path, num_tokens: int) -> None:
        """Read the state of a sequence from a file that `save` wrote."""
        tokens = (api.llama_token * num_tokens)()
        count = ctypes.c_size_t(0)
        if not api.llama_state_seq_load_file(
            self._context, str(path).encode(), 0, tokens, num_tokens, ctypes.byref(count)
        ):
            raise RuntimeError(f"llama.cpp cannot restore {path}")
        self._num_past = count.value

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; the logits (T, V) after each."""
        rows = []
        for start in range(0, len(token_ids), self._batch_tokens):
            chunk = token_ids[start : start + self._batch_tokens]
            self._decode(chunk, wanted=range(len(chunk)))
            rows += [self._row(i) for i in range(len(chunk))]
        return np.stack(rows)

    def step(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; the logits (V,) after the last."""
        for start in range(0, len(token_ids), self._batch_tokens):
            chunk = token_ids[start : start + self._batch_tokens]
            self._decode(chunk, wanted=[len(chunk) - 1])
        return self._row(len(chunk) - 1)

    def _row(self, i: int) -> NDArray[np.float32]:
        pointer = api.llama_get_logits_ith(self._context, i)
        return np.ctypeslib.as_array(pointer, (self._vocab_size,)).copy()

    def _decode(self, token_ids: Sequence[int], wanted: Any) -> None:
        batch = api.llama_batch_init(len(token_ids), 0, 1)
        batch.n_tokens = len(token_ids)
        for i, token_id in enumerate(token_ids):
            batch.token[i] = token_id
            batch.pos[i] = self._num_past + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i in wanted
        status = api.llama_decode(self._context, batch)
        api.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode failed with {status}")
        self._num_past += len(token_ids)
