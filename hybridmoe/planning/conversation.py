"""Speed of a conversation, one prompt and its answer, by which plans are compared."""

from typing import NamedTuple

from hybridmoe.planning.stage_cost import StagedCost

__all__ = ["Conversation", "Speed", "speed_of"]


class Conversation(NamedTuple):
    """Tokens whose time is compared."""

    prompt_tokens: int = 1024
    answer_tokens: int = 256


class Speed(NamedTuple):
    """Prediction for a conversation."""

    prompt: float  # tokens/s
    decode: float  # tokens/s
    seconds: float  # of the conversation


def speed_of(cost: StagedCost, conversation: Conversation) -> Speed:
    """Predict the speed of a conversation; a token of its answer is the one in the middle."""
    num_prompt, num_answer = conversation
    prompt = cost.prompt(num_prompt)
    decode = cost.decode(num_prompt + num_answer // 2)
    seconds = prompt.total_s + num_answer * decode.total_s
    return Speed(prompt.tokens_per_s, decode.tokens_per_s, seconds)
