"""The model behind the endpoint: absent while it loads, then shared by every request.

Knows how a request becomes a run; not what any API's requests and answers look like.
"""

import time
import weakref
import zlib
from functools import cached_property
from typing import Any

from hybridmoe.engine.engine import EngineStats
from hybridmoe.llm.llm import LLM
from hybridmoe.serve.body import Bodies
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.job import Job, TextTurn, Turn, chat_job, chat_prompt, completion_job
from hybridmoe.serve.metrics import Metrics
from hybridmoe.serve.pool import WorkPool
from hybridmoe.serve.run import Run
from hybridmoe.serve.stored import ResponseStore
from hybridmoe.text.grammar import GrammarCompiler

__all__ = ["Service"]

_NUM_THREADS = 4  # Python runs in one at a time; others are in native code, or await a process


class Service:
    """What every route needs. Its methods belong to the event loop, but for `attach` and `fail`,
    which whoever loads the model may call from any thread.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.started = int(time.time())
        self.load_progress: float | None = None  # 0 to 1
        self.failure: str | None = None
        self.metrics = Metrics(self._stats)
        self.bodies = Bodies(config)
        self.pool = WorkPool(_NUM_THREADS, config.max_preparing, config.prepare_s)
        self.responses = ResponseStore(config.max_stored, config.max_stored_bytes)
        self._llm: LLM | None = None
        self._runs = weakref.WeakSet[Run]()
        self.is_ending = False

    @property
    def is_ready(self) -> bool:
        return self._llm is not None

    @property
    def llm(self) -> LLM:
        """The model. Raises ApiError (503) while there is none, and when the server ends."""
        if self.is_ending:
            raise _ending()
        if self._llm is None:
            why = "loading" if self.failure is None else "not available: it could not be loaded"
            raise ApiError(
                503,
                f"the model is {why}",
                type="server_error",
                code="model_loading",
                headers={"Retry-After": str(self.config.retry_after_s)},
            )
        return self._llm

    @cached_property
    def grammar(self) -> GrammarCompiler:
        """Compiles what answers must look like, for this model's tokens."""
        return GrammarCompiler(self.llm.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the model's file and settings, as OpenAI's `system_fingerprint` does."""
        llm = self.llm
        about = f"{llm.file.path.name} {llm.config} {llm.context_tokens}"
        digest = zlib.crc32(about.encode("utf-8", "surrogateescape"))
        return f"fp_{digest:08x}"

    def attach(self, llm: LLM) -> None:
        """The model is loaded."""
        self._llm = llm

    def fail(self, message: str) -> None:
        """The model cannot be loaded."""
        self.failure = message

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises ApiError (404) for one that is not served."""
        names = (self.config.model_name, *self.config.model_aliases)
        if not name or name in names:
            return name or names[0]
        raise ApiError(
            404,
            f"the model {name!r:.200} does not exist here; served: {', '.join(names)}",
            param="model",
            code="model_not_found",
        )

    async def run_chat(self, turn: Turn) -> Run:
        """Begin to answer a conversation. Errors: ApiError, ConfigError and kin."""
        llm = self.llm
        job = await self.pool.run(
            lambda token: chat_job(llm, self.grammar, turn, self.config, token),
            is_short=turn.is_short,
        )
        return self._start(job)

    async def run_completion(self, turn: TextTurn) -> Run:
        """Begin to continue a text. Errors: ApiError, ConfigError and kin."""
        llm = self.llm
        job = await self.pool.run(
            lambda token: completion_job(llm, self.grammar, turn, self.config, token),
            is_short=turn.is_short,
        )
        return self._start(job)

    async def count_tokens(self, turn: Turn) -> int:
        """How many tokens a conversation's prompt has."""
        llm = self.llm
        return await self.pool.run(
            lambda token: len(chat_prompt(llm, turn, self.config, token)), is_short=turn.is_short
        )

    def model_card(self) -> dict[str, Any]:
        """What /v1/models lists."""
        llm, config = self.llm, self.llm.config
        return {
            "id": self.config.model_name,
            "object": "model",
            "created": self.started,
            "owned_by": "hybridmoe",
            "max_model_len": llm.context_tokens,
            "meta": {
                "name": config.name,
                "n_ctx": llm.context_tokens,
                "n_ctx_train": config.context_tokens,
                "n_vocab": config.vocab_size,
                "n_layer": config.num_layers,
                "n_dense_layers": config.num_dense_layers,
                "n_experts": config.num_experts,
                "n_experts_used": config.top_k,
            },
        }

    def end(self) -> None:
        """The server ends: clients of answers under way are told, and requests refused."""
        self.is_ending = True
        self.bodies.close(_ending())
        self.pool.close(_ending)
        for run in list(self._runs):
            run.fail(_ending())

    def _start(self, job: Job) -> Run:
        llm = self.llm
        run = Run(llm.engine, llm.tokenizer, job, self.metrics)
        self._runs.add(run)
        return run

    def _stats(self) -> EngineStats | None:
        return None if self._llm is None else self._llm.engine.stats()


def _ending() -> ApiError:
    return ApiError(
        503,
        "the server is ending",
        type="server_error",
        code="server_ending",
        headers={"Connection": "close"},
    )
