"""Table of every request field of four APIs and of their dialects: what happens to it.

Rows are the fields of the official clients, and those that llama.cpp, vLLM, SGLang, LM Studio,
ollama's OpenAI endpoint and OpenRouter add. A test compares them with the clients' types and the
schemas, and docs/serving.md has them in tables. Fields inside other fields have rows too, unless
they are done: `messages[].audio`. The names of a row share one fate:

done      a schema declares it, and it takes effect
refused   it would change the answer, and is not supported: 400, unless the value is neutral
harmless  the answer is the same without it
"""

from collections.abc import Iterator
from types import MappingProxyType

from hybridmoe.serve.field_row import APIS, Api, Row, done
from hybridmoe.serve.unsupported_fields import HARMLESS, INNER, REFUSED

__all__ = ["ROWS", "TABLE"]

_DONE = (
    done("ctrm", "model", "a served name; empty or missing: the served model"),
    done("cm", "messages", "the conversation"),
    done("t", "prompt", "texts or token ids"),
    done("r", "input instructions", "the conversation"),
    done("r", "previous_response_id conversation store", "from the store of the last ones"),
    done("m", "system", "the system message"),
    done("crm", "tools tool_choice", "functions; tools of other types are skipped in responses"),
    done("cr", "parallel_tool_calls", "false: at most one call"),
    done("ctm", "max_tokens", "most tokens of the response"),
    done("c", "max_completion_tokens", "as max_tokens"),
    done("r", "max_output_tokens", "as max_tokens"),
    done(
        "ctrm", "temperature temperature_last top_p top_k min_p typical_p top_n_sigma"
        " xtc_probability xtc_threshold"
        " dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers"
        " presence_penalty frequency_penalty repetition_penalty repeat_last_n logit_bias seed",
        "sampling",
    ),
    done("ctrm", "repeat_penalty", "as repetition_penalty"),
    done("ctrm", "samplers", "those left out are off; only temperature may change its place"),
    done("ctrm", "options", "sampling parameters under ollama's names; its machine settings are"
          " the server's"),
    done("ctrm", "stop", "up to 16 strings that end the text"),
    done("m", "stop_sequences", "as stop"),
    done("ctrm", "stop_token_ids", "tokens that end the response"),
    done("ctrm", "ignore_eos min_tokens", "go on after the end token"),
    done("ctrm", "n_predict", "as max_tokens"),
    done("ct", "n n_cmpl", "choices of each prompt"),
    done("t", "best_of", "at most n: choices are not ranked"),
    done("ctrm", "response_format", "JSON, schema, regular expression or grammar, enforced"),
    done(
        "ctrm", "json_schema grammar regex ebnf structured_outputs guided_json guided_regex"
        " guided_choice guided_grammar format", "as response_format; one of them",
    ),
    done("r", "text", "its `format` as response_format"),
    done("m", "output_config output_format", "its `format` as response_format"),
    done("ctrm", "stream", "server-sent events"),
    done("ct", "stream_options", "`include_usage`, `continuous_usage_stats`"),
    done("ct", "logprobs n_probs", "log-probabilities of the text"),
    done("cr", "top_logprobs", "log-probabilities of the text"),
    done("t", "echo", "text and log-probabilities begin with the prompt's; `max_tokens` may be 0"),
    done("ct", "prompt_logprobs", "log-probabilities of the prompt by token id; not in streams"),
    done("r", "include", "`message.output_text.logprobs`"),
    done("r", "metadata", "given back in the response"),
    done("c", "include_reasoning", "false: the response is without its reasoning"),
    done("ct", "return_token_ids", "`token_ids` and `prompt_token_ids`"),
    done("ct", "return_tokens_as_token_ids", "log-probabilities name tokens `token_id:N`"),
    done("ctr", "return_progress", "`prompt_progress` in chunks"),
    done("ctr", "timings_per_token", "`timings` in chunks"),
    done("c", "functions function_call", "older tools and tool_choice, with an older response"),
    done("t", "add_special_tokens", "false: texts without the begin token"),
    done("r", "context_management", "above a threshold the oldest turns are summarized"),
    done("crm", "chat_template_kwargs preserve_thinking", "variables that the template reads"),
    done("c", "reasoning_effort enable_thinking think", "thinking on, off, or a level"),
    done("cr", "reasoning", "its `effort`, `enabled`, and `max_tokens` as a budget"),
    done("cm", "thinking", "on or off; `budget_tokens` of reasoning, then it is closed"),
    done(
        "c", "thinking_budget thinking_budget_tokens thinking_token_budget reasoning_budget",
        "tokens of reasoning, then it is closed",
    ),
    done(
        "c", "continue_final_message add_generation_prompt",
        "the assistant's last message is continued",
    ),
    done("ct", "return_experts", "the chosen experts of each token, and what served each"),
)  # fmt: skip

ROWS = (*_DONE, *REFUSED, *HARMLESS, *INNER)


def _fields() -> Iterator[tuple[Api, str, Row]]:
    for row in ROWS:
        for api in row.apis:
            for name in row.names:
                yield api, name, row


def _by_api() -> dict[Api, MappingProxyType[str, Row]]:
    table: dict[Api, dict[str, Row]] = {api: {} for api in APIS.values()}
    for api, name, row in _fields():
        assert name not in table[api], (api, name)
        table[api][name] = row
    return {api: MappingProxyType(rows) for api, rows in table.items()}


TABLE = _by_api()
