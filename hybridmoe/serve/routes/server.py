"""Routes of the server itself: health, metrics, models, tokenization; embeddings get 501."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.inputs import ChatInput
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.model_list import model_list, named_card
from hybridmoe.serve.routes.openapi import ERRORS
from hybridmoe.serve.schemas.server import (
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingsRequest,
    ErrorResponse,
    HealthResponse,
    ModelCard,
    ModelList,
    ServerVersion,
    TokenizeRequest,
    TokenizeResponse,
)
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute
from hybridmoe.serve.work_pool import CancelToken
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["Server"])


@router.get("/v1/health", response_model=None, include_in_schema=False)
@router.get("/health", response_model=None, responses={200: {"model": HealthResponse}, **ERRORS})
async def health(request: Request) -> Response:
    """Check health: 503 while the first model loads, or after a GPU has failed.

    `degraded` while a host of the model's experts is away, which no restart mends.

    `models` tells which of several are loaded, and the progress of one that loads again.
    """
    models = get_service(request).models
    if (failure := models.device_failure) is not None:
        return CompactJSONResponse({"status": "failed", "message": failure}, 503)
    if (outage := models.outage) is not None:
        return CompactJSONResponse({"status": "degraded", "message": outage})
    if not models.has_started:
        first = models.slots[0]
        status = "failed" if first.status == "failed" else "loading"
        return CompactJSONResponse({"status": status, "progress": first.progress}, 503)
    if [slot.status for slot in models.slots] == ["loaded"]:
        return CompactJSONResponse({"status": "ok"})
    return CompactJSONResponse({"status": "ok", "models": models.states()})


@router.get("/ready", response_model=None, responses={200: {"model": HealthResponse}, **ERRORS})
async def ready(request: Request) -> Response:
    """Check readiness: 503 where /health has it or is degraded, and while the server drains."""
    service = get_service(request)
    if service.is_ending:
        return CompactJSONResponse({"status": "ending"}, 503)
    if (outage := service.models.outage) is not None:
        return CompactJSONResponse({"status": "degraded", "message": outage}, 503)
    return await health(request)


@router.get("/version", response_model=None, responses={200: {"model": ServerVersion}, **ERRORS})
async def get_version() -> Response:
    """Get the version of this server."""
    return CompactJSONResponse({"version": version("hybridmoe")})


@router.get("/metrics", response_class=PlainTextResponse, responses=ERRORS)
async def metrics(request: Request) -> Response:
    """Export metrics in Prometheus's text format."""
    text = get_service(request).metrics.render()
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/models", response_model=None, include_in_schema=False)
@router.get("/v1/models", response_model=None, responses={200: {"model": ModelList}, **ERRORS})
async def list_models(request: Request) -> Response:
    """List the served models, the default one first, each with its aliases."""
    service = get_service(request)
    service.models.check_started()
    sources = [slot.source for slot in service.models.slots]
    cards = [(service.model_card(source.name), source.aliases) for source in sources]
    return CompactJSONResponse(model_list(cards))


@router.get("/models/{model:path}", response_model=None, include_in_schema=False)
@router.get(
    "/v1/models/{model:path}", response_model=None, responses={200: {"model": ModelCard}, **ERRORS}
)
async def get_model(model: str, request: Request) -> Response:
    """Get a model by its name or an alias."""
    service = get_service(request)
    name = service.check_model(model)
    service.models.check_started()
    return CompactJSONResponse(named_card(service.model_card(name), name))


@router.post(
    "/tokenize", response_model=None, responses={200: {"model": TokenizeResponse}, **ERRORS}
)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Encode a text with the model's tokenizer."""
    service = get_service(request)
    model = service.check_model(body.model)
    if body.messages is not None:
        chat = ChatInput(
            messages=[message.model_dump(exclude_none=True) for message in body.messages],
            tools=[tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        )
        ids = await service.encode_chat(chat, model)
    else:
        ids = await _encode_text(service, body, model)
    async with service.lease(model) as llm:

        def work(_: CancelToken) -> Response:
            tokens = [_piece(llm.tokenizer, i) for i in ids] if body.with_pieces else ids
            return CompactJSONResponse(
                {"tokens": tokens, "count": len(ids), "max_model_len": llm.context_tokens}
            )

        return await service.pool.run(work)


async def _encode_text(service: Service, body: TokenizeRequest, model: str) -> list[int]:
    text = body.content if body.content is not None else body.prompt
    if text is None:
        raise ApiError(400, "content is missing; expected a text, or messages", param="content")
    async with service.lease(model) as llm:

        def work(token: CancelToken) -> list[int]:
            limit = llm.tokenizer.prompt_limit(llm.context_tokens, token.check)
            return llm.tokenizer.encode(
                text,
                add_special=body.add_special or body.add_special_tokens,
                parse_special=body.parse_special,
                limit=limit,
            )

        return await service.pool.run(work)


@router.post(
    "/detokenize", response_model=None, responses={200: {"model": DetokenizeResponse}, **ERRORS}
)
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """Decode token ids; special tokens become their names."""
    service = get_service(request)
    async with service.lease(service.check_model(body.model)) as llm:
        llm.tokenizer.prompt_limit(llm.context_tokens).add_tokens(len(body.tokens))
        text = await service.pool.run(
            lambda _: llm.tokenizer.decode(body.tokens, skip_special=False)
        )
    return CompactJSONResponse({"content": text, "prompt": text})


def _piece(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    """Make a token's id and text, or its bytes if they are part of a character."""
    data = tokenizer.token_bytes(token_id)
    try:
        return {"id": token_id, "piece": data.decode()}
    except UnicodeDecodeError:
        return {"id": token_id, "piece": list(data)}


@router.post("/embedding", response_model=None, include_in_schema=False)
@router.post("/embeddings", response_model=None, include_in_schema=False)
@router.post(
    "/v1/embeddings",
    response_model=None,
    responses={501: {"model": ErrorResponse, "description": "Always."}, **ERRORS},
)
async def create_embedding(body: EmbeddingsRequest) -> Response:
    """Return 501: embeddings are not supported."""
    raise ApiError(
        501,
        "embeddings are not supported: this server runs language models, which are no embedders",
        type="not_implemented_error",
        code="not_implemented",
    )
