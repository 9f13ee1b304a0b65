"""llama.cpp's samplers on given logits, as an oracle."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np

from hybridmoe.engine.sampling_params import SamplingParams

__all__ = ["LlamaSamplers"]


_SILENT = llama.llama_log_callback(lambda level, text, user_data: None)


class LlamaSamplers:
    """llama.cpp's sampler chains for the vocabulary of one file."""

    def __init__(self, path: Path) -> None:
        params = llama.llama_model_default_params()
        params.vocab_only = True
        llama.llama_log_set(_SILENT, ctypes.c_void_p())
        self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        assert self._model is not None
        self._vocab = llama.llama_model_get_vocab(self._model)

    def close(self) -> None:
        llama.llama_model_free(self._model)

    def distribution(
        self, logits: np.ndarray, params: SamplingParams, tokens: Sequence[int] = ()
    ) -> dict[int, float]:
        """Probabilities of the tokens that are left, after `tokens`, by llama.cpp's default order.

        Presence and frequency penalties have no counterpart. XTC acts if its probability is 1.
        """
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        try:
            for sampler in self._samplers(params, logits.size):
                llama.llama_sampler_chain_add(chain, sampler)
            for token in tokens:
                llama.llama_sampler_accept(chain, token)
            return _apply(chain, logits)
        finally:
            llama.llama_sampler_free(chain)

    def _samplers(self, params: SamplingParams, vocab_size: int) -> list[int]:
        last_n = params.repeat_last_n if params.repeat_last_n >= 0 else 1 << 16
        temperature = llama.llama_sampler_init_temp(params.temperature)
        samplers = [
            llama.llama_sampler_init_penalties(
                vocab_size, last_n, params.repetition_penalty, 0.0, 0.0
            ),
            *([] if params.dry_multiplier == 0.0 else [self._dry(params)]),
            llama.llama_sampler_init_top_n_sigma(params.top_n_sigma),
            *([] if params.temperature_last else [temperature]),
            llama.llama_sampler_init_top_k(params.top_k),
            llama.llama_sampler_init_typical(params.typical_p, 0),
            llama.llama_sampler_init_top_p(params.top_p, 0),
            llama.llama_sampler_init_min_p(params.min_p, 0),
            llama.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 0, 1),
            *([temperature] if params.temperature_last else []),
        ]
        assert all(samplers)
        return samplers

    def _dry(self, params: SamplingParams) -> int:
        texts = [text.encode() for text in params.dry_sequence_breakers]
        last_n = params.dry_penalty_last_n if params.dry_penalty_last_n >= 0 else 1 << 16
        sampler: int = llama.llama_sampler_init_dry(
            self._vocab,
            params.dry_multiplier,
            params.dry_base,
            params.dry_allowed_length,
            last_n,
            (ctypes.c_char_p * len(texts))(*texts),
            len(texts),
        )
        return sampler


_ENTRY = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def _apply(chain: int, logits: np.ndarray) -> dict[int, float]:
    entries = np.zeros(logits.size, _ENTRY)
    entries["id"], entries["logit"] = np.arange(logits.size), logits
    data = entries.ctypes.data_as(llama.llama_token_data_p)
    array = llama.llama_token_data_array(data, logits.size, -1, False)
    llama.llama_sampler_apply(chain, ctypes.byref(array))
    address = ctypes.cast(array.data, ctypes.c_void_p).value
    assert address is not None
    left = np.frombuffer(ctypes.string_at(address, array.size * _ENTRY.itemsize), _ENTRY)
    weights = np.exp((left["logit"] - left["logit"].max()).astype(np.float64))
    shares = weights / weights.sum()
    return {int(i): float(share) for i, share in zip(left["id"], shares, strict=True) if share}
