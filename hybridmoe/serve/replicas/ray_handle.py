"""Replicas of a Ray Serve deployment, by its handle."""

from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridmoe.errors import QueueFullError
from hybridmoe.serve.replicas.asgi_call import ForwardedRequest
from hybridmoe.serve.replicas.forward import ReplicaLostError
from hybridmoe.serve.replicas.live_replicas import live_replicas

__all__ = ["RayReplicas", "without_cancellation"]


class RayReplicas:
    """Calls a deployment of `ModelReplica` whose router is `RankedRouter`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(stream=True)

    @property
    def live(self) -> frozenset[str]:
        return live_replicas()

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[str | list[Message], None]:
        """Have a replica answer, as `Replicas.answer`."""
        items = self._handle.answer.remote(request)
        try:
            async for item in items:
                yield item
        except (RayActorError, DeploymentUnavailableError) as error:
            raise ReplicaLostError(str(error)) from None
        except BackPressureError:
            raise QueueFullError("too many requests wait for a replica") from None
        finally:
            items.cancel()


def without_cancellation(app: ASGIApp) -> ASGIApp:
    """Have an application see a disconnected client where Ray raises TaskCancelledError."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_or_leave() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await app(scope, receive_or_leave, send)

    return call
