"""OpenAI's /v1/responses: a request carries its conversation, or goes on from a stored one."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.answer import chat_logprobs, service_of
from hybridmoe.serve.errors import ApiError, as_api_error
from hybridmoe.serve.reply import EventStream, JsonReply
from hybridmoe.serve.routes.documented import ERRORS, stream_or
from hybridmoe.serve.routes.responses_events import ResponseItems
from hybridmoe.serve.routes.responses_turn import as_turn, conversation, functions
from hybridmoe.serve.run import Delta, Ended, Run
from hybridmoe.serve.schemas.common import refuse_unsupported
from hybridmoe.serve.schemas.responses import DeletedAnswer, ResponseAnswer, ResponsesRequest
from hybridmoe.serve.service import Service
from hybridmoe.serve.strict_json import StrictRoute

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])
_ONE = "/v1/responses/{response_id}"


@router.post(
    "/v1/responses", response_model=None, responses={**stream_or(ResponseAnswer), **ERRORS}
)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation, whole or as a stream of typed events."""
    service = service_of(request)
    refuse_unsupported(body)
    model = service.check_model(body.model)
    items = await service.pool.run(lambda _: conversation(body, service.responses), is_short=True)
    run = await service.run_chat(as_turn(body, items))
    reply = _Reply(service, run, model, body, items)
    if body.stream:
        return EventStream(reply.events(), run.cancel, service.config.keep_alive_s)
    try:
        return await reply.whole()
    finally:
        run.cancel()


@router.get(_ONE, response_model=None, responses={200: {"model": ResponseAnswer}, **ERRORS})
async def get_response(response_id: str, request: Request) -> Response:
    """A stored response, as it was answered."""
    response = service_of(request).responses.response(response_id)
    if response is None:
        raise _not_stored(response_id)
    return Response(response, media_type="application/json")


@router.delete(_ONE, response_model=None, responses={200: {"model": DeletedAnswer}, **ERRORS})
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a stored response."""
    if not service_of(request).responses.delete(response_id):
        raise _not_stored(response_id)
    return JsonReply({"id": response_id, "object": "response", "deleted": True})


def _not_stored(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id {response_id!r:.80} not found.", param="response_id")


class _Reply:
    def __init__(
        self,
        service: Service,
        run: Run,
        model: str,
        body: ResponsesRequest,
        items: list[dict[str, Any]],
    ) -> None:
        self._run = run
        self._store = service.responses if body.store is not False else None
        self._past_items = items
        self._retry_after_s = service.config.retry_after_s
        tokenizer = service.llm.tokenizer
        self._items = ResponseItems(lambda entries: chat_logprobs(entries, tokenizer))
        choice = body.tool_choice or "auto"
        self._base: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": run.created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id or None,
            "store": self._store is not None,
            "temperature": run.job.params.temperature,
            "text": (body.text.model_dump(by_alias=True, exclude_none=True) if body.text else None)
            or {"format": {"type": "text"}},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump(exclude_none=True) for _, tool in functions(body)],
            "top_p": run.job.params.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    async def whole(self) -> Response:
        end = None
        async for update in self._run.updates():
            if isinstance(update, Delta):
                for _ in self._items.delta(update):
                    pass
            elif isinstance(update, Ended):
                end = update
        assert end is not None
        for _ in self._items.close(_status(end)):
            pass
        return JsonReply(self._ended(end))

    async def events(self) -> AsyncIterator[bytes]:
        items = self._items
        yield items.event("response.created", response=self._base)
        yield items.event("response.in_progress", response=self._base)
        try:
            async for update in self._run.updates():
                if isinstance(update, Delta):
                    for event in items.delta(update):
                        yield event
                elif isinstance(update, Ended):
                    for event in items.close(_status(update)):
                        yield event
                    kind = f"response.{_status(update)}"
                    yield items.event(kind, response=self._ended(update))
        except Exception as error:
            refusal = as_api_error(error, self._retry_after_s)
            what = {"code": refusal.code or refusal.type, "message": str(refusal)}
            failed = {**self._base, "status": "failed", "error": what, "output": items.output}
            yield items.event("response.failed", response=failed)

    def _ended(self, end: Ended) -> dict[str, Any]:
        run = self._run
        is_cut = end.reason == "length"
        response = {
            **self._base,
            "status": _status(end),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self._items.output,
            "usage": {
                "input_tokens": run.prompt_tokens,
                "input_tokens_details": {"cached_tokens": run.cached_tokens},
                "output_tokens": run.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": run.reasoning_tokens},
                "total_tokens": run.prompt_tokens + run.completion_tokens,
            },
            "timings": run.timings(),
        }
        if self._store is not None:
            self._store.put(response, [*self._past_items, *self._items.output])
        return response


def _status(end: Ended) -> str:
    return "incomplete" if end.reason == "length" else "completed"
