"""Service: the models, their queues and stores, shared by every request of an endpoint.

It turns inputs into generations; the routes know each API's requests and responses.
"""

import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request

from hybridmoe.llm.llm import LLM
from hybridmoe.llm.progress import ProgressCallback
from hybridmoe.serve.bounded_store import BoundedStore
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.conversation_store import ConversationStore
from hybridmoe.serve.encode_prompt import encode_prompt
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.field_check import UnknownFields
from hybridmoe.serve.generation import Generation
from hybridmoe.serve.inputs import ChatInput, TextInput
from hybridmoe.serve.metrics import Metrics
from hybridmoe.serve.model_pool import ModelPool
from hybridmoe.serve.model_slot import ModelSource
from hybridmoe.serve.prefix_log import PrefixLog
from hybridmoe.serve.prepare import (
    PreparedRequest,
    prepare_chat,
    prepare_completion,
)
from hybridmoe.serve.request_body import BodyBudget
from hybridmoe.serve.request_record import RequestRecord
from hybridmoe.serve.response_store import ResponseStore
from hybridmoe.serve.served_model import Lease, ServedModel
from hybridmoe.serve.work_pool import CancelToken, WorkPool

__all__ = ["Service", "get_service"]

_NUM_THREADS = 4  # one runs Python at a time; others run native code or await a process


class Service:
    """State shared by all routes.

    Used from the event loop, except `attach`, which is thread-safe.
    """

    def __init__(
        self,
        config: ServeConfig,
        models: ModelPool | None = None,
        prefix_log: PrefixLog | None = None,
    ) -> None:
        """models: started and closed by the caller; None = one, which is attached.

        prefix_log: reports the prompts of each request.
        """
        self.config = config
        self.prefix_log = prefix_log
        self.started = int(time.time())
        self.models = models or ModelPool([_attached(config)])
        self.metrics = Metrics(self.models.stats)
        self.bodies = BodyBudget(config)
        self.pool = WorkPool(_NUM_THREADS, config.max_preparing, config.prepare_timeout_s)
        stored = BoundedStore(config.max_stored_responses, config.max_stored_bytes)
        self.responses = ResponseStore(stored)
        self.conversations = ConversationStore(stored)
        self._generations = weakref.WeakSet[Generation]()
        self.is_draining = self.is_shutting_down = False
        self.unknown_fields = UnknownFields()

    @property
    def is_ending(self) -> bool:
        """True once further requests are refused."""
        return self.is_draining or self.is_shutting_down

    @asynccontextmanager
    async def lease(self, model: str) -> AsyncIterator[LLM]:
        """Use a model: it stays loaded meanwhile. model: a result of `check_model`.

        Errors: ApiError (503) if it is not loaded in time, or at all, and during shutdown.
        """
        lease = await self._lease(model)
        try:
            yield lease.llm
        finally:
            lease.release()

    def attach(self, llm: LLM) -> None:
        """Start to serve the loaded model."""
        self.models.attach(llm)

    def check_model(self, name: str | None) -> str:
        """Resolve a request's model name. Raises ApiError (404) for one that is not served."""
        if not name:
            return self.config.model_name
        if self.models.resolve(name) is not None:
            return name
        raise ApiError(
            404,
            f"the model {name!r:.200} does not exist here; served: {', '.join(self.models.names)}",
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
                lambda token: encode_prompt(llm, chat, self.config, token).ids,
                is_short=chat.is_short,
            )

    async def count_tokens(self, chat: ChatInput, model: str) -> int:
        """Count the tokens of a conversation's prompt. Errors: those of `start_chat`."""
        return len(await self.encode_chat(chat, model))

    def model_card(self, model: str) -> dict[str, Any]:
        """Describe a model for /v1/models."""
        return {**self.models.slot(model).card, "created": self.started}

    def shut_down(self) -> None:
        """End the generations under way with an error, and refuse further requests."""
        self.is_shutting_down = True
        self.bodies.close(_shutdown_error())
        self.pool.close(_shutdown_error)
        self.models.refuse(_shutdown_error)
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
        RequestRecord.of_context().generations.append(generation)
        return generation

    async def _lease(self, name: str) -> Lease:
        if self.is_ending:
            raise _shutdown_error()
        record = RequestRecord.of_context()
        record.model = name
        lease = self.models.try_lease(name)
        if lease is None:
            with record.waiting():
                lease = await self.models.lease(name)
        return lease


def get_service(request: Request) -> Service:
    """Get the application's service."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _attached(config: ServeConfig) -> ModelSource:
    """Make the source of a model that is attached, and so never loaded."""

    def load(_: ProgressCallback) -> LLM:
        raise NotImplementedError

    return ModelSource(name=config.model_name, aliases=config.model_aliases, load=load)


def _shutdown_error() -> ApiError:
    return ApiError(
        503,
        "the server is ending",
        type="server_error",
        code="server_ending",
        headers={"Connection": "close"},
    )
