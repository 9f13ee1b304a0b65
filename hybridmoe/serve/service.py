"""Service: the model, its queues and stores, shared by every request of an endpoint.

It turns inputs into generations; the routes know each API's requests and responses.
"""

import time
import weakref
import zlib
from functools import cached_property
from typing import Any

from starlette.requests import Request

from hybridmoe.engine.stats import EngineStats
from hybridmoe.llm.llm import LLM
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.generation import Generation
from hybridmoe.serve.inputs import ChatInput, TextInput
from hybridmoe.serve.metrics import Metrics
from hybridmoe.serve.prepare import (
    PreparedRequest,
    encode_prompt,
    prepare_chat,
    prepare_completion,
)
from hybridmoe.serve.request_body import BodyBudget
from hybridmoe.serve.response_store import ResponseStore
from hybridmoe.serve.work_pool import WorkPool
from hybridmoe.text.grammar_compiler import GrammarCompiler

__all__ = ["Service", "get_service"]

_NUM_THREADS = 4  # one runs Python at a time; others run native code or await a process


class Service:
    """State shared by all routes.

    Used from the event loop, except `attach` and `fail`, which are thread-safe.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.started = int(time.time())
        self.load_progress: float | None = None  # 0 to 1
        self.failure: str | None = None
        self.metrics = Metrics(self._stats)
        self.bodies = BodyBudget(config)
        self.pool = WorkPool(_NUM_THREADS, config.max_preparing, config.prepare_timeout_s)
        self.responses = ResponseStore(config.max_stored_responses, config.max_stored_bytes)
        self._llm: LLM | None = None
        self._generations = weakref.WeakSet[Generation]()
        self.is_shutting_down = False

    @property
    def is_ready(self) -> bool:
        return self._llm is not None

    @property
    def llm(self) -> LLM:
        """The model. Raises ApiError (503) while it loads, and during shutdown."""
        if self.is_shutting_down:
            raise _shutdown_error()
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
        """Compiler of response formats and tool calls for this model's vocabulary."""
        return GrammarCompiler(self.llm.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes with the model's file and settings."""
        llm = self.llm
        about = f"{llm.file.path.name} {llm.config} {llm.context_tokens}"
        digest = zlib.crc32(about.encode("utf-8", "surrogateescape"))
        return f"fp_{digest:08x}"

    def attach(self, llm: LLM) -> None:
        """Start to serve the loaded model."""
        self._llm = llm

    def fail(self, message: str) -> None:
        """Report that the model cannot be loaded."""
        self.failure = message

    def check_model(self, name: str | None) -> str:
        """Resolve a request's model name. Raises ApiError (404) for one that is not served."""
        names = (self.config.model_name, *self.config.model_aliases)
        if not name or name in names:
            return name or names[0]
        raise ApiError(
            404,
            f"the model {name!r:.200} does not exist here; served: {', '.join(names)}",
            param="model",
            code="model_not_found",
        )

    async def start_chat(self, chat: ChatInput) -> Generation:
        """Start to continue a conversation. Errors: ApiError, ConfigError, TemplateError."""
        llm = self.llm
        request = await self.pool.run(
            lambda token: prepare_chat(llm, self.grammar, chat, self.config, token),
            is_short=chat.is_short,
        )
        return self._start(request)

    async def start_completion(self, text: TextInput) -> Generation:
        """Start to continue a text. Errors: ApiError, ConfigError."""
        llm = self.llm
        request = await self.pool.run(
            lambda token: prepare_completion(llm, self.grammar, text, self.config, token),
            is_short=text.is_short,
        )
        return self._start(request)

    async def count_tokens(self, chat: ChatInput) -> int:
        """Count the tokens of a conversation's prompt."""
        llm = self.llm
        return await self.pool.run(
            lambda token: len(encode_prompt(llm, chat, self.config, token)), is_short=chat.is_short
        )

    def model_card(self) -> dict[str, Any]:
        """Describe the model for /v1/models."""
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
                "plan": llm.plan.facts(),
            },
        }

    def shut_down(self) -> None:
        """End the generations under way with an error, and refuse further requests."""
        self.is_shutting_down = True
        self.bodies.close(_shutdown_error())
        self.pool.close(_shutdown_error)
        for generation in list(self._generations):
            generation.fail(_shutdown_error())

    def _start(self, request: PreparedRequest) -> Generation:
        llm = self.llm
        generation = Generation(llm.engine, llm.tokenizer, request, self.metrics)
        self._generations.add(generation)
        return generation

    def _stats(self) -> EngineStats | None:
        return None if self._llm is None else self._llm.engine.stats()


def get_service(request: Request) -> Service:
    """Get the application's service."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _shutdown_error() -> ApiError:
    return ApiError(
        503,
        "the server is ending",
        type="server_error",
        code="server_ending",
        headers={"Connection": "close"},
    )
