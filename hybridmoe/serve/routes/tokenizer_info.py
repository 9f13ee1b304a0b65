"""vLLM's /tokenizer_info: with /tokenize, all that evaluation harnesses need of a tokenizer."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.model_facts import chat_template
from hybridmoe.serve.routes.llama_server import named_token
from hybridmoe.serve.routes.openapi import ERRORS
from hybridmoe.serve.schemas.server import TokenizerInfo
from hybridmoe.serve.service import get_service
from hybridmoe.serve.strict_json import StrictRoute

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["Server"])


@router.get(
    "/tokenizer_info", response_model=None, responses={200: {"model": TokenizerInfo}, **ERRORS}
)
async def get_tokenizer_info(request: Request, model: str | None = None) -> Response:
    """Describe a model's tokenizer."""
    service = get_service(request)
    async with service.lease(service.check_model(model)) as llm:
        return CompactJSONResponse(
            {
                "tokenizer_class": "hybridmoe",
                "bos_token": named_token(llm, "bos"),
                "eos_token": named_token(llm, "eos"),
                "vocab_size": llm.tokenizer.num_tokens,
                "model_max_length": llm.context_tokens,
                "chat_template": chat_template(llm),
            }
        )
