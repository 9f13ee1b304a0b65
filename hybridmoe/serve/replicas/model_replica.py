"""Replica of a model: a whole endpoint without a connection, which the front calls."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.types import Message

from hybridmoe.errors import DeviceError
from hybridmoe.llm.load import load
from hybridmoe.serve.app import create_app
from hybridmoe.serve.replicas.asgi_call import ForwardedRequest, call_app
from hybridmoe.serve.replicas.options import ReplicaOptions
from hybridmoe.serve.request_log import text_line
from hybridmoe.serve.service import Service
from hybridmoe.serve.stored_id import set_id_tag

__all__ = ["ModelReplica"]

_log = logging.getLogger("ray.serve")


class ModelReplica:
    """Loads a model and answers requests by it. Used from one event loop."""

    def __init__(self, options: ReplicaOptions, tag: str) -> None:
        """Load the model, which may take minutes. Errors: those of `hybridmoe.load`."""
        self._tag = tag
        set_id_tag(tag)
        self._service = Service(options.replica_config())
        self._llm = load(options.model, options)
        self._service.attach(self._llm)
        self._app = create_app(self._service, _log_request)

    async def answer(self, request: ForwardedRequest) -> AsyncIterator[str | list[Message]]:
        """Answer a request. Yields this replica's tag, then the messages of its response."""
        yield self._tag
        async with aclosing(call_app(self._app, request)) as batches:
            async for messages in batches:
                yield messages

    def check_health(self) -> None:
        """Raise DeviceError once a GPU has failed: the replica is to be replaced."""
        if (failure := self._service.models.device_failure) is not None:
            raise DeviceError(failure)

    def close(self) -> None:
        """End the requests under way and close the model. Errors: those of `LLM.close`."""
        self._service.shut_down()
        self._llm.close()


def _log_request(fields: Mapping[str, Any]) -> None:
    _log.info(text_line(fields))
