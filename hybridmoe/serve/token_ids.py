"""Token ids beside the text of a response, as in vLLM's `return_token_ids`."""

from typing import Any

from hybridmoe.serve.generation import Generation

__all__ = ["TokenIds"]


class TokenIds:
    """Gives the ids of a generation's tokens. The end token, and a prompt's text, are not there."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._num_given = [0] * generation.num_choices

    def of_prompt(self, index: int) -> dict[str, Any]:
        """Make the field with a choice's prompt."""
        return {"prompt_token_ids": list(self._generation.request.prompt_of(index))}

    def take(self, index: int) -> dict[str, Any]:
        """Make the field with a choice's tokens since the last call."""
        ids = self._generation.choices[index].token_ids
        new = ids[self._num_given[index] :]
        self._num_given[index] = len(ids)
        return {"token_ids": new}
