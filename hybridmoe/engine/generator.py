"""One sequence at a time: prefill what the cache does not hold, then decode token by token.

Knows token ids only; text, stop strings and templates are its caller's business.
"""

import collections.abc
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.kv_cache import SequenceCache
from hybridmoe.engine.sampler import Sampler, SamplingParams
from hybridmoe.errors import ConfigError
from hybridmoe.model.decoder import Decoder

__all__ = ["Generation", "Generator", "TokenStream"]

PrefillProgress = Callable[[int, int], None]
TokenStream = collections.abc.Generator[int, None, None]

# Tokens per prefill step: enough to share each expert's weights, little enough to show progress.
_CHUNK_TOKENS = 256


@dataclass(slots=True)
class Generation:
    """What a run has done so far; filled in while its iterator is consumed."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, taken from the cache
    prompt_s: float = 0.0
    decode_s: float = 0.0  # from the first generated token to the last
    generated_tokens: int = 0
    finish_reason: str | None = None  # "stop" (end token), "length", or None: stopped by the caller


class Generator:
    """Continues prompts on one model, keeping the last sequence's latents for the next prompt."""

    def __init__(self, model: Decoder, eos_ids: Set[int], context_tokens: int) -> None:
        self._model = model
        self._eos_ids = eos_ids
        self._cache = SequenceCache(model.config, context_tokens)

    @property
    def context_tokens(self) -> int:
        return self._cache.capacity_tokens

    def run(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        record: Generation,
        progress: PrefillProgress | None = None,
    ) -> TokenStream:
        """Yield generated ids, without the end token. Closing the iterator stops the run.

        Errors, before any work: ConfigError for an empty prompt, one that does not fit the
        context, or an id outside the vocabulary.
        """
        ids = list(prompt_ids)
        self._check(ids)
        record.prompt_tokens = len(ids)
        sampler = Sampler(params, ids, self._model.config.vocab_size)
        room = self._cache.capacity_tokens - len(ids)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        return self._run(ids, sampler, limit, params.ignore_eos, record, progress)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits (T, V) of every position of a sequence, from scratch and into no cache."""
        ids = list(token_ids)
        self._check(ids)
        cache = SequenceCache(self._model.config, len(ids))
        out = np.empty((len(ids), self._model.config.vocab_size), np.float32)
        for start in range(0, len(ids), _CHUNK_TOKENS):
            chunk = ids[start : start + _CHUNK_TOKENS]
            cache.reserve(start + len(chunk))
            states = self._model.forward(chunk, cache, start)
            out[start : start + len(chunk)] = self._model.logits(states).numpy()
        return out

    def _run(
        self,
        ids: list[int],
        sampler: Sampler,
        limit: int,
        ignore_eos: bool,
        record: Generation,
        progress: PrefillProgress | None,
    ) -> TokenStream:
        started = time.perf_counter()
        logits = self._prefill(ids, record, progress)
        first_token = time.perf_counter()
        record.prompt_s = first_token - started
        record.finish_reason = "length"
        while record.generated_tokens < limit:
            token_id = sampler.sample(logits)
            if token_id in self._eos_ids and not ignore_eos:
                record.finish_reason = "stop"
                break
            record.generated_tokens += 1
            record.decode_s = time.perf_counter() - first_token
            record.finish_reason = None
            yield token_id
            record.finish_reason = "length"
            if record.generated_tokens < limit:
                logits = self._step([token_id])

    def _prefill(
        self, ids: list[int], record: Generation, progress: PrefillProgress | None
    ) -> NDArray[np.float32]:
        """Bring the cache to `ids`; the logits after the last, which is always computed anew."""
        held = min(self._cache.common_prefix(ids), len(ids) - 1)
        self._cache.truncate(held)
        record.cached_tokens = held
        logits = np.empty(0, np.float32)
        for start in range(held, len(ids), _CHUNK_TOKENS):
            if progress is not None:
                progress(start, len(ids))
            logits = self._step(ids[start : start + _CHUNK_TOKENS])
        if progress is not None:
            progress(len(ids), len(ids))
        return logits

    def _step(self, ids: list[int]) -> NDArray[np.float32]:
        """Append `ids` to the cache; the logits (V,) after the last."""
        cache = self._cache
        start = len(cache.token_ids)
        cache.reserve(start + len(ids))
        states = self._model.forward(ids, cache, start)
        cache.token_ids += ids  # only now: an interrupted step leaves the cache as it was
        logits: NDArray[np.float32] = self._model.logits(states[-1:])[0].numpy()
        return logits

    def _check(self, ids: list[int]) -> None:
        capacity, vocab_size = self._cache.capacity_tokens, self._model.config.vocab_size
        if not ids:
            raise ConfigError("the prompt is empty: expected at least one token")
        if len(ids) > capacity:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, the context holds {capacity}: shorten it"
            )
        outside = next((i for i in ids if not 0 <= i < vocab_size), None)
        if outside is not None:
            raise ConfigError(f"token {outside} is outside the vocabulary of {vocab_size}")
