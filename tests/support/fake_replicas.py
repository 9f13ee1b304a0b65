"""Replicas in this process, each a whole endpoint on a fake LLM, which can be lost at will."""

import asyncio
from collections.abc import AsyncGenerator

from fake_engine import FakeLLM
from starlette.types import Message

from hybridmoe.serve import ServeConfig, Service, create_app
from hybridmoe.serve.replicas.asgi_call import ForwardedRequest, call_app
from hybridmoe.serve.replicas.forward import ReplicaLostError

__all__ = ["FakeReplicas"]


class FakeReplicas:
    """As `Replicas`; routes as Ray does with `RankedRouter`."""

    def __init__(self, *tags: str) -> None:
        self.llms = {tag: FakeLLM() for tag in tags}
        self.live = frozenset(tags)
        self.asked: list[str] = []  # tags, in the order of the requests
        self.messages_before_loss: dict[str, int] = {}  # of each replica that dies
        self.wakes = asyncio.Event()
        self.num_held = 0  # requests that had to wait for it
        self._apps = {}
        for tag, llm in self.llms.items():
            service = Service(ServeConfig(model_name="test", keep_alive_s=0.05))
            service.attach(llm)
            self._apps[tag] = create_app(service)

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[str | list[Message], None]:
        if not self.live:
            self.num_held += 1
            await self.wakes.wait()
        wanted = [tag for tag in request.wanted if tag in self.live]
        tag = wanted[0] if wanted else min(self.live)
        self.asked.append(tag)
        yield tag
        num_messages = 0
        call = call_app(self._apps[tag], request)
        try:
            async for messages in call:
                for message in messages:
                    if self.messages_before_loss.get(tag) == num_messages:
                        self.live -= {tag}
                        raise ReplicaLostError(tag)
                    yield [message]
                    num_messages += 1
        finally:
            await call.aclose()
