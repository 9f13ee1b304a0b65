"""ollama's routes about models: /api/tags, /api/ps, /api/show; embeddings get 501.

A model that is not loaded is described as far as it is known; none is loaded to describe it.
"""

import math
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.llm.llm import LLM
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.model_facts import chat_template
from hybridmoe.serve.routes.ollama import ollama_model, timestamp
from hybridmoe.serve.routes.openapi import ERRORS, Responses
from hybridmoe.serve.schemas.ollama import (
    OllamaModelList,
    OllamaShowRequest,
    OllamaShowResponse,
    OllamaVersion,
)
from hybridmoe.serve.schemas.server import EmbeddingsRequest, ErrorResponse
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["ollama"])
_LIST: Responses = {200: {"model": OllamaModelList}, **ERRORS}
_ABOUT: Responses = {200: {"model": OllamaVersion}, **ERRORS}
_VERSION = "0.12.11"  # the first with log-probabilities, which these routes have
_NEVER_S = 100 * 365 * 86400  # until a model expires that is not unloaded
_LONG_LIST = 64  # entries; longer ones (the vocabulary) are left out of model_info
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


@router.get(
    "/api/version", response_model=None, responses={200: {"model": OllamaVersion}, **ERRORS}
)
async def get_version() -> Response:
    """Get the version of ollama's API that these routes follow; clients ask for a lowest one."""
    return CompactJSONResponse({"version": _VERSION})


@router.get("/api/tags", response_model=None, responses=_LIST)
async def list_models(request: Request) -> Response:
    """List the served models."""
    service = get_service(request)
    return CompactJSONResponse({"models": [_entry(service, name) for name in _names(service)]})


@router.get("/api/ps", response_model=None, responses=_LIST)
async def list_loaded(request: Request) -> Response:
    """List the models that are loaded, with their memory in bytes."""
    service = get_service(request)
    models = []
    for name in _names(service):
        llm = _loaded(service, name)
        if llm is not None:
            tiers = llm.plan.facts()["tiers"]
            used = {tier: facts["used_bytes"] for tier, facts in tiers.items()}
            memory = {"size": sum(used.values()), "size_vram": used.get("VRAM", 0)}
            until = {
                "expires_at": timestamp(time.time() + _NEVER_S),
                "context_length": llm.context_tokens,
            }
            models.append({**_entry(service, name), **memory, **until})
    return CompactJSONResponse({"models": models})


@router.post(
    "/api/show", response_model=None, responses={200: {"model": OllamaShowResponse}, **ERRORS}
)
async def show_model(body: OllamaShowRequest, request: Request) -> Response:
    """Describe a model: template, sampling defaults, metadata of its file, capabilities."""
    service = get_service(request)
    name = ollama_model(service, body.model or body.name or "")
    service.models.check_started()
    entry = _entry(service, name)
    meta = service.model_card(name)["meta"]
    about = {
        "modelfile": f"# served by hybridmoe as {name}\n",
        "parameters": "",
        "template": "",
        "details": entry["details"],
        "model_info": {},
        "modified_at": entry["modified_at"],
        "capabilities": meta.get("capabilities", ["completion"]),
    }
    llm = _loaded(service, name)
    return CompactJSONResponse(about if llm is None else {**about, **_described(llm, meta)})


@router.post("/api/embeddings", response_model=None, include_in_schema=False)
@router.post(
    "/api/embed",
    response_model=None,
    responses={501: {"model": ErrorResponse, "description": "Always."}, **ERRORS},
)
async def embed(body: EmbeddingsRequest) -> Response:
    """Return 501: embeddings are not supported."""
    raise ApiError(501, "embeddings are not supported: models here are no embedders")


def _names(service: Service) -> list[str]:
    """List all models. Raises ApiError (503) before one has been loaded."""
    service.models.check_started()
    return [slot.source.name for slot in service.models.slots]


def _loaded(service: Service, name: str) -> LLM | None:
    model = service.models.slot(name).model
    return None if model is None else model.llm


def _entry(service: Service, name: str) -> dict[str, Any]:
    """Describe a model for a list."""
    meta = service.model_card(name)["meta"]
    family = meta.get("architecture", "")
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(meta.get("modified", 0)),
        "size": meta.get("size", 0),
        "digest": meta.get("digest", ""),
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family],
            "parameter_size": _short_count(meta.get("n_params", 0)),
            "quantization_level": meta.get("ftype", ""),
        },
    }


def _described(llm: LLM, meta: dict[str, Any]) -> dict[str, Any]:
    """Describe a loaded model by its file and its defaults."""
    metadata = llm.file.metadata
    info = {
        name: value
        for name, value in metadata.items()
        if _is_shown(value) and name != "tokenizer.chat_template"
    }
    params = llm.sampling_params({})
    return {
        "license": str(metadata.get("general.license", "")),
        "parameters": "\n".join(f"{name} {getattr(params, name)}" for name in _SAMPLING),
        "template": chat_template(llm),
        "model_info": {**info, "general.parameter_count": meta["n_params"]},
    }


def _is_shown(value: Any) -> bool:
    """Leave out long lists, and numbers that JSON lacks."""
    if isinstance(value, list):
        return len(value) <= _LONG_LIST and all(map(_is_shown, value))
    return not isinstance(value, float) or math.isfinite(value)


def _short_count(count: int) -> str:
    """Write a number of parameters as ollama does: `1.0T`, `7.2B`, `12.5M`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count / 1e3:.1f}K"
