"""What this server says of itself: models, tokens, health, metrics; and what it does not do."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from hybridmoe.serve.answer import service_of, token_text
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.pool import CancelToken
from hybridmoe.serve.reply import JsonReply
from hybridmoe.serve.routes.documented import ERRORS
from hybridmoe.serve.schemas.tokens import (
    DetokenizeRequest,
    EmbeddingsRequest,
    ErrorAnswer,
    HealthAnswer,
    ModelCard,
    ModelList,
    TextAnswer,
    TokenizeRequest,
    TokensAnswer,
)
from hybridmoe.serve.strict_json import StrictRoute
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["Server"])


@router.get("/health", response_model=None, responses={200: {"model": HealthAnswer}, **ERRORS})
async def health(request: Request) -> Response:
    """200 when requests can be answered; 503 while the model loads, or when its card has failed."""
    service = service_of(request)
    if service.is_ready:
        failure = service.llm.engine.device_failure
        if failure is not None:
            return JsonReply({"status": "failed", "message": failure}, 503)
        return JsonReply({"status": "ok"})
    status = "loading" if service.failure is None else "failed"
    return JsonReply({"status": status, "progress": service.load_progress}, 503)


@router.get("/metrics", response_class=PlainTextResponse, responses=ERRORS)
async def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    text = service_of(request).metrics.render()
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", response_model=None, responses={200: {"model": ModelList}, **ERRORS})
async def list_models(request: Request) -> Response:
    """The one model that is served."""
    return JsonReply({"object": "list", "data": [service_of(request).model_card()]})


@router.get(
    "/v1/models/{model:path}", response_model=None, responses={200: {"model": ModelCard}, **ERRORS}
)
async def get_model(model: str, request: Request) -> Response:
    """The model, by its name or an alias."""
    service = service_of(request)
    name = service.check_model(model)
    return JsonReply({**service.model_card(), "id": name})


@router.post("/tokenize", response_model=None, responses={200: {"model": TokensAnswer}, **ERRORS})
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Token ids of a text, by the model's own tokenizer."""
    service = service_of(request)
    llm = service.llm
    text = body.content if body.content is not None else body.prompt
    if text is None:
        raise ApiError(400, "content is missing; expected a text", param="content")

    def work(token: CancelToken) -> Response:
        limit = llm.tokenizer.limit(llm.context_tokens, token.check)
        ids = llm.tokenizer.encode(
            text, add_special=body.add_special, parse_special=body.parse_special, limit=limit
        )
        tokens = [_piece(llm.tokenizer, i) for i in ids] if body.with_pieces else ids
        return JsonReply({"tokens": tokens, "count": len(ids), "max_model_len": llm.context_tokens})

    return await service.pool.run(work)


@router.post("/detokenize", response_model=None, responses={200: {"model": TextAnswer}, **ERRORS})
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of token ids; special tokens by their names."""
    service = service_of(request)
    llm = service.llm
    llm.tokenizer.limit(llm.context_tokens).add(len(body.tokens))

    def work(_: CancelToken) -> Response:
        text = llm.tokenizer.decode(body.tokens, skip_special=False)
        return JsonReply({"content": text, "prompt": text})

    return await service.pool.run(work)


def _piece(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    return {"id": token_id, "piece": token_text(token_id, tokenizer)}


@router.post(
    "/v1/embeddings",
    response_model=None,
    responses={501: {"model": ErrorAnswer, "description": "Always."}, **ERRORS},
)
async def create_embedding(body: EmbeddingsRequest) -> Response:
    """Not offered: a language model's states are no embeddings."""
    raise ApiError(
        501,
        "embeddings are not supported: this server runs language models, which are no embedders",
        type="not_implemented_error",
        code="not_implemented",
    )
