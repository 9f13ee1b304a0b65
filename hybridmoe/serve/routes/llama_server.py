"""llama-server's routes about the server: /props, /slots, /apply-template; /infill gets 501."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.llm.llm import LLM
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.model_facts import chat_template
from hybridmoe.serve.routes.chat_input import chat_input
from hybridmoe.serve.routes.llama_completion import llama_settings
from hybridmoe.serve.routes.openapi import ERRORS
from hybridmoe.serve.schemas.chat import ChatCompletionRequest
from hybridmoe.serve.schemas.llama import InfillRequest, PropsResponse, RenderedPrompt, SlotState
from hybridmoe.serve.schemas.server import ErrorResponse
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute

__all__ = ["named_token", "router"]

router = APIRouter(route_class=StrictRoute, tags=["llama-server"])


@router.get("/props", response_model=None, responses={200: {"model": PropsResponse}, **ERRORS})
async def get_props(request: Request, model: str | None = None) -> Response:
    """Describe the server and a model, with the default sampling parameters.

    A model that is not loaded is sleeping, and is left so.
    """
    service = get_service(request)
    name = service.check_model(model)
    llm = _loaded(service, name)
    if llm is None:
        return CompactJSONResponse({"model_alias": name, "is_sleeping": True})
    slot = _slot(llm, 0, is_processing=False)
    params = llama_settings(llm.sampling_params({}), llm.context_tokens)
    return CompactJSONResponse(
        {
            "default_generation_settings": {**slot, "params": params},
            "total_slots": llm.engine.config.max_running,
            "model_alias": name,
            "model_path": str(llm.file.path),
            "chat_template": chat_template(llm),
            "bos_token": named_token(llm, "bos"),
            "eos_token": named_token(llm, "eos"),
            "modalities": {"vision": False, "audio": False},
            "build_info": f"hybridmoe {version('hybridmoe')}",
            "is_sleeping": False,
        }
    )


@router.get("/slots", response_model=None, responses={200: {"model": list[SlotState]}, **ERRORS})
async def get_slots(
    request: Request, model: str | None = None, fail_on_no_slot: int = 0
) -> Response:
    """List the sequences that can run at once, and how many do: none of a model not loaded.

    503 if asked, and none is free.
    """
    service = get_service(request)
    llm = _loaded(service, service.check_model(model))
    if llm is None:
        return CompactJSONResponse([])
    running, total = llm.engine.stats().running, llm.engine.config.max_running
    if fail_on_no_slot and running >= total:
        raise ApiError(503, "no slot is free", type="server_error", code="no_slot_available")
    return CompactJSONResponse([_slot(llm, i, is_processing=i < running) for i in range(total)])


@router.post(
    "/apply-template", response_model=None, responses={200: {"model": RenderedPrompt}, **ERRORS}
)
async def apply_template(body: ChatCompletionRequest, request: Request) -> Response:
    """Render the prompt of a chat completion. It is not computed."""
    service = get_service(request)
    model = service.check_model(body.model)
    ids = await service.encode_chat(chat_input(body), model)
    async with service.lease(model) as llm:
        prompt = llm.tokenizer.decode(ids, skip_special=False)
    return CompactJSONResponse({"prompt": prompt})


@router.post(
    "/infill",
    response_model=None,
    responses={501: {"model": ErrorResponse, "description": "Always."}, **ERRORS},
)
async def infill(body: InfillRequest) -> Response:
    """Return 501: models here are not trained to fill in the middle."""
    raise ApiError(
        501,
        "/infill is not supported: the models served here are not trained to fill in the middle;"
        " use /completion or /v1/chat/completions",
        type="not_implemented_error",
        code="not_implemented",
    )


def _loaded(service: Service, name: str) -> LLM | None:
    """Get a model, if it is loaded. Raises ApiError (503) before one has been."""
    service.models.check_started()
    model = service.models.slot(name).model
    return None if model is None else model.llm


def _slot(llm: LLM, index: int, *, is_processing: bool) -> dict[str, Any]:
    return {
        "id": index,
        "id_task": -1,
        "n_ctx": llm.context_tokens,
        "speculative": False,
        "is_processing": is_processing,
    }


def named_token(llm: LLM, role: str) -> str:
    """Get the text of the file's "bos" or "eos" token; "" without one."""
    token_id = llm.file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    return llm.tokenizer.decode([token_id], skip_special=False) if isinstance(token_id, int) else ""
