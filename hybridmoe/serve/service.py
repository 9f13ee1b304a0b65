"""Service: the models, their queues and stores, shared by every request of an endpoint.

It turns inputs into generations; the routes know each API's requests and responses.
"""

import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request

from hybridmoe.engine.stats import EngineStats
from hybridmoe.llm.llm import LLM
from hybridmoe.serve.bounded_store import BoundedStore
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.conversation_store import ConversationStore
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.field_check import UnknownFields
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
from hybridmoe.serve.served_model import Lease, ServedModel
from hybridmoe.serve.work_pool import CancelToken, WorkPool

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
        stored = BoundedStore(config.max_stored_responses, config.max_stored_bytes)
        self.responses = ResponseStore(stored)
        self.conversations = ConversationStore(stored)
        self._model: ServedModel | None = None
        self._generations = weakref.WeakSet[Generation]()
        self.is_shutting_down = False
        self.unknown_fields = UnknownFields()

    @property
    def is_ready(self) -> bool:
        return self._model is not None

    @property
    def device_failure(self) -> str | None:
        """Error that ended all computation, in one line; None if there was none."""
        return None if self._model is None else self._model.llm.engine.device_failure

    @asynccontextmanager
    async def lease(self, model: str) -> AsyncIterator[LLM]:
        """Use a model: it stays loaded meanwhile. model: a result of `check_model`.

        Errors: ApiError (503) while it loads, and during shutdown.
        """
        lease = await self._lease(model)
        try:
            yield lease.llm
        finally:
            lease.release()

    def served(self, model: str) -> ServedModel:
        """Get a loaded model by name. Errors: as `lease`."""
        if self.is_shutting_down:
            raise _shutdown_error()
        if self._model is None:
            why = "loading" if self.failure is None else "not available: it could not be loaded"
            raise ApiError(
                503,
                f"the model is {why}",
                type="server_error",
                code="model_loading",
                headers={"Retry-After": str(self.config.retry_after_s)},
            )
        return self._model

    def attach(self, llm: LLM) -> None:
        """Start to serve the loaded model."""
        self._model = ServedModel(self.config.model_name, llm)

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

    async def start_chat(self, chat: ChatInput, model: str) -> Generation:
        """Start to continue a conversation with a model, a result of `check_model`.

        Errors: ApiError, ConfigError, TemplateError.
        """

        def prepare(model: ServedModel, token: CancelToken) -> PreparedRequest:
            return prepare_chat(model.llm, model.grammar, chat, self.config, token)

        return await self._start(model, prepare, is_short=chat.is_short)

    async def start_completion(self, text: TextInput, model: str) -> Generation:
        """Start to continue a text with a model. Errors: ApiError, ConfigError."""

        def prepare(model: ServedModel, token: CancelToken) -> PreparedRequest:
            return prepare_completion(model.llm, model.grammar, text, self.config, token)

        return await self._start(model, prepare, is_short=text.is_short)

    async def encode_chat(self, chat: ChatInput, model: str) -> list[int]:
        """Encode a conversation's prompt. Errors: those of `start_chat`."""
        async with self.lease(model) as llm:
            return await self.pool.run(
                lambda token: encode_prompt(llm, chat, self.config, token), is_short=chat.is_short
            )

    async def count_tokens(self, chat: ChatInput, model: str) -> int:
        """Count the tokens of a conversation's prompt. Errors: those of `start_chat`."""
        return len(await self.encode_chat(chat, model))

    def model_card(self, model: str) -> dict[str, Any]:
        """Describe a model for /v1/models."""
        llm = self.served(model).llm
        config = llm.config
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

    async def _start(
        self,
        name: str,
        prepare: Callable[[ServedModel, CancelToken], PreparedRequest],
        *,
        is_short: bool,
    ) -> Generation:
        """Prepare a request and start it; its generation takes over the lease."""
        lease = await self._lease(name)
        try:
            request = await self.pool.run(
                lambda token: prepare(lease.model, token), is_short=is_short
            )
            if self.is_shutting_down:
                raise _shutdown_error()
            generation = Generation(lease, request, self.metrics)
        except BaseException:
            lease.release()
            raise
        self._generations.add(generation)
        return generation

    async def _lease(self, name: str) -> Lease:
        return Lease(self.served(name), lambda: None)

    def _stats(self) -> EngineStats | None:
        return None if self._model is None else self._model.llm.engine.stats()


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
