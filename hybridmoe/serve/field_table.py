"""Table of every request field of four APIs and of their dialects: what happens to it.

Rows are the fields of the official clients, and those that llama.cpp, vLLM, SGLang, LM Studio,
ollama's OpenAI endpoint and OpenRouter add. A test compares them with the clients' types and the
schemas, and docs/fields.md is written from them. Fields inside other fields have rows too, unless
they are done: `messages[].audio`. The names of a row share one fate:

done      a schema declares it, and it takes effect
refused   it would change the answer, and is not supported: 400, unless the value is neutral
harmless  the answer is the same without it
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["ROWS", "TABLE", "Api", "Fate", "Row"]

Api = Literal["chat", "completions", "responses", "messages"]
Fate = Literal["done", "refused", "harmless"]
_LETTERS: dict[str, Api] = {
    "c": "chat", "t": "completions", "r": "responses", "m": "messages",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """Fields with one fate in one or several APIs."""

    fate: Fate
    apis: tuple[Api, ...]
    names: tuple[str, ...]
    why: str  # what it does, or why it is refused or harmless
    neutral: tuple[Any, ...] = ()  # values of refused fields that ask for nothing


def _row(fate: Fate, letters: str, names: str, why: str, *neutral: Any) -> Row:
    return Row(fate, tuple(_LETTERS[x] for x in letters), tuple(names.split()), why, neutral)


def _done(letters: str, names: str, why: str) -> Row:
    return _row("done", letters, names, why)


def _refused(letters: str, names: str, why: str, *neutral: Any) -> Row:
    return _row("refused", letters, names, why, *neutral)


def _harmless(letters: str, names: str, why: str) -> Row:
    return _row("harmless", letters, names, why)


_DONE = (
    _done("ctrm", "model", "a served name; empty or missing: the served model"),
    _done("cm", "messages", "the conversation"),
    _done("t", "prompt", "texts or token ids"),
    _done("r", "input instructions", "the conversation"),
    _done("r", "previous_response_id conversation store", "from the store of the last ones"),
    _done("m", "system", "the system message"),
    _done("crm", "tools tool_choice", "functions; tools of other types are skipped in responses"),
    _done("cr", "parallel_tool_calls", "false: at most one call"),
    _done("ctm", "max_tokens", "most tokens of the response"),
    _done("c", "max_completion_tokens", "as max_tokens"),
    _done("r", "max_output_tokens", "as max_tokens"),
    _done(
        "ctrm", "temperature temperature_last top_p top_k min_p typical_p top_n_sigma"
        " xtc_probability xtc_threshold"
        " dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers"
        " presence_penalty frequency_penalty repetition_penalty repeat_last_n logit_bias seed",
        "sampling",
    ),
    _done("ctrm", "repeat_penalty", "as repetition_penalty"),
    _done("ctrm", "samplers", "those left out are off; only temperature may change its place"),
    _done("ctrm", "options", "sampling parameters under ollama's names; its machine settings are"
          " the server's"),
    _done("ctrm", "stop", "up to 16 strings that end the text"),
    _done("m", "stop_sequences", "as stop"),
    _done("ctrm", "stop_token_ids", "tokens that end the response"),
    _done("ctrm", "ignore_eos min_tokens", "go on after the end token"),
    _done("ctrm", "n_predict", "as max_tokens"),
    _done("ct", "n n_cmpl", "choices of each prompt"),
    _done("t", "best_of", "at most n: choices are not ranked"),
    _done("ctrm", "response_format", "JSON, schema, regular expression or grammar, enforced"),
    _done(
        "ctrm", "json_schema grammar regex ebnf structured_outputs guided_json guided_regex"
        " guided_choice guided_grammar format", "as response_format; one of them",
    ),
    _done("r", "text", "its `format` as response_format"),
    _done("m", "output_config output_format", "its `format` as response_format"),
    _done("ctrm", "stream", "server-sent events"),
    _done("ct", "stream_options", "`include_usage`, `continuous_usage_stats`"),
    _done("ct", "logprobs n_probs", "log-probabilities of the text"),
    _done("cr", "top_logprobs", "log-probabilities of the text"),
    _done("t", "echo", "text and log-probabilities begin with the prompt's; `max_tokens` may be 0"),
    _done("ct", "prompt_logprobs", "log-probabilities of the prompt by token id; not in streams"),
    _done("r", "include", "`message.output_text.logprobs`"),
    _done("r", "metadata", "given back in the response"),
    _done("ct", "return_token_ids", "`token_ids` and `prompt_token_ids`"),
    _done("ct", "return_tokens_as_token_ids", "log-probabilities name tokens `token_id:N`"),
    _done("ctr", "return_progress", "`prompt_progress` in chunks"),
    _done("ctr", "timings_per_token", "`timings` in chunks"),
    _done("c", "functions function_call", "older tools and tool_choice, with an older response"),
    _done("t", "add_special_tokens", "false: texts without the begin token"),
    _done("r", "context_management", "above a threshold the oldest turns are summarized"),
    _done("crm", "chat_template_kwargs preserve_thinking", "variables that the template reads"),
    _done("c", "reasoning_effort enable_thinking think", "thinking on, off, or a level"),
    _done("cr", "reasoning", "its `effort`, `enabled`, and `max_tokens` as a budget"),
    _done("cm", "thinking", "on or off; `budget_tokens` of reasoning, then it is closed"),
    _done(
        "c", "thinking_budget thinking_budget_tokens thinking_token_budget reasoning_budget",
        "tokens of reasoning, then it is closed",
    ),
    _done(
        "c", "continue_final_message add_generation_prompt",
        "the assistant's last message is continued",
    ),
    _done("ct", "return_experts", "the chosen experts of each token"),
)  # fmt: skip

_MEDIA = "the model reads and writes text only"
_NO_SAMPLER = "this sampler is not there"
_LISTED = "not supported yet"  # replaced row by row

_REFUSED = (
    _refused("c", "audio", _MEDIA),
    _refused("c", "modalities", _MEDIA, ["text"]),
    _refused("t", "suffix", "models here are not trained to fill in the middle", ""),
    _refused("c", "echo", "the conversation is not part of the response", False),
    _refused("c", "best_of", "choices are not ranked; use n", 1),
    _refused("r", "background", "a response lives as long as its request", False),
    _refused("r", "prompt", "templates are not stored here"),
    _refused("c", "preset", "settings are not stored here"),
    _refused("m", "mcp_servers", "this server calls no other servers", []),
    _refused("m", "container", "this server runs no code"),
    _refused("m", "thread", "conversations are not stored; send all messages"),
    _refused("m", "compaction", "conversations are not summarized"),
    _refused("ctrm", "structural_tag guided_whitespace_pattern", "use a grammar"),
    # Templates.
    _refused("c", "chat_template", "conversations are written by the model file's template"),
    _refused("c", "documents", "write them into a message", []),
    _refused("c", "task input_ids", "conversations are written by the model file's template"),
    _refused("ct", "truncate_prompt_tokens", "prompts are not cut: one too long gets 400", -1),
    _refused("c", "add_special_tokens", "the template writes them", False),
    _refused("ct", "prompt_embeds", "texts and token ids only"),
    # Sampling.
    _refused("ctrm", "mirostat dynatemp_range top_a", _NO_SAMPLER, 0),
    _refused("ctrm", "adaptive_target", _NO_SAMPLER, -1),
    _refused("ctrm", "tfs_z", _NO_SAMPLER, 1),
    _refused("ctrm", "min_keep n_indent t_max_predict_ms", "not supported", 0),
    _refused("ctrm", "use_beam_search watermarking", _NO_SAMPLER, False),
    _refused("ctrm", "bad_words", "use logit_bias", []),
    _refused("ctrm", "allowed_token_ids", "use logit_bias or a grammar", []),
    _refused("ctrm", "stop_regex", "use stop", []),
    _refused(
        "ctrm", "logits_processors custom_logit_processor custom_params repetition_detection"
        " vllm_xargs", "a server runs no code of a request",
    ),
    _refused("ctrm", "lora", "adapters are not supported", []),
    _refused("ctrm", "lora_path", "adapters are not supported"),
    # What the response holds.
    _refused("ct", "include_stop_str_in_output no_stop_trim", "text ends before it", False),
    _refused("ct", "skip_special_tokens", "text never holds special tokens", True),
    _refused("ct", "logprob_token_ids", _LISTED),
    _refused("ct", "post_sampling_probs", "log-probabilities are the model's own", False),
    _refused("ct", "return_tokens return_prompt_token_ids", "use return_token_ids", False),
    _refused(
        "ct", "return_prompt_text return_hidden_states"
        " return_routed_experts", "not part of a response", False,
    ),
    _refused("c", "separate_reasoning parse_tool_calls", "text never holds these", True),
    _refused("c", "include_reasoning", _LISTED, True),
    _refused(
        "c", "reasoning_format", "reasoning is always apart", "auto", "deepseek", "deepseek-legacy",
    ),
    _refused("c", "thinking_forced_open", "the template decides", False),
    # Other machines and sessions.
    _refused("ct", "kv_transfer_params ec_transfer_params", "the cache stays in this process"),
    _refused("ct", "session_params", "send the whole conversation"),
)  # fmt: skip

_NOTE = "a note for the operator"
_CACHE = "the prefix cache is always on, and changes no answer"
_PLACE = "one process, one queue"
_IMAGES = "for images, which are refused"

_HARMLESS = (
    _harmless(
        "ctrm", "user safety_identifier session_id request_id rid extra_key custom_labels"
        " user_profile_id workspace_id client_metadata trace debug verbose", _NOTE,
    ),
    _harmless("ctm", "metadata", _NOTE),
    _harmless("c", "store", "chat completions are not stored"),
    _harmless(
        "ctrm", "prompt_cache_key prompt_cache_options prompt_cache_retention cache_control"
        " cache_prompt cache_salt n_cache_reuse", _CACHE,
    ),
    _harmless("ctrm", "id_slot n_keep n_discard keep_alive ttl num_ctx", "set by the server"),
    _harmless(
        "ctrm", "service_tier speed inference_geo priority provider route models fallbacks"
        " fallback_credit_token billing_policy betas max_price"
        " routed_dp_rank disagg_prefill_dp_rank data_parallel_rank"
        " bootstrap_host bootstrap_port bootstrap_room", _PLACE,
    ),
    _harmless("ctrm", "usage diagnostics return_cached_tokens_details return_meta_info",
              "counts are in every response"),
    _harmless("ctrm", "moderation access_programs", "texts are not judged"),
    _harmless("cr", "web_search_options max_tool_calls plugins", "hosted tools are not run"),
    _harmless("c", "verbosity", "a hint to models that were trained for it"),
    _harmless("crm", "truncation transforms truncation_side",
              "a prompt is never cut: one too long gets 400"),
    _harmless("cm", "context_management", "a prompt is never cut: one too long gets 400"),
    _harmless("ctr", "prediction draft_model ngram_corpus_id speculative spec_type",
              "drafts change the speed alone"),
    _harmless("m", "return_progress timings_per_token", "its events have no place for them"),
    _harmless("r", "background_options", "only with background"),
    _harmless("r", "personality", "only with hosted tools"),
    _harmless("ctrm", "image image_config images_config max_dynamic_patch min_dynamic_patch"
              " use_audio_in_video media_io_kwargs mm_processor_kwargs return_mm_kwargs", _IMAGES),
    _harmless("ctrm", "mirostat_tau mirostat_eta dynatemp_exponent adaptive_decay length_penalty"
              " early_stopping", "only with a sampler that is refused"),
    _harmless("ctrm", "guided_decoding_backend backend_sampling", "there is one"),
    _harmless("ct", "spaces_between_special_tokens", "text never holds special tokens"),
    _harmless("ctrm", "stream_interval stream_reasoning sse_ping_interval",
              "the text is the same in other pieces"),
    _harmless("ct", "response_fields routed_experts_prompt_start routed_experts_start_len"
              " return_token_offsets", "the whole response is sent"),
    _harmless("t", "thinking_token_budget", "raw texts have no thoughts"),
    _harmless("r", "stream_options", "the text is the same in other pieces"),
)  # fmt: skip

_INNER = (
    _refused("c", "messages[].audio", _MEDIA),
    _refused("c", "messages[].tools", "use the request's tools", []),
    _harmless("c", "messages[].annotations messages[].id messages[].weight messages[].index"
              " messages[].provider_specific_fields messages[].reasoning_details"
              " messages[].tool_calls[].index messages[].tool_calls[].provider_specific_fields"
              " messages[].tool_calls[].extra_content messages[].content[].annotations", _NOTE),
    _harmless("c", "messages[].cache_control messages[].content[].cache_control"
              " messages[].content[].prompt_cache_breakpoint tools[].cache_control", _CACHE),
    _harmless("c", "tools[].defer_loading tools[].function.defer_loading", "all tools are shown"),
    _harmless("ct", "stream_options.include_obfuscation", "the text is the same"),
    _harmless("r", "input[].*", "of items, the model sees what the schema lists"),
    _refused("ctrm", "structured_outputs.structural_tag structured_outputs.whitespace_pattern",
             "use a grammar"),
    _refused("ctrm", "structured_outputs.disable_additional_properties",
             "write additionalProperties in the schema", False),
    _harmless("ctrm", "structured_outputs.disable_any_whitespace structured_outputs.backend"
              " structured_outputs.disable_fallback", "JSON is compact, and there is one backend"),
    _harmless("m", "output_config.task_budget", "a hint to models that were trained for it"),
    _harmless("cr", "reasoning.summary reasoning.generate_summary reasoning.exclude",
              "thoughts are returned whole"),
    _harmless("cm", "thinking.display", "thoughts are returned whole"),
    _harmless("r", "text.format.description", "models here do not read it"),
    _harmless("m", "output_config.format.name output_config.format.strict output_format.name"
              " output_format.strict", "formats are always enforced"),
    _harmless("r", "text.verbosity", "a hint to models that were trained for it"),
    _harmless("rm", "tools[].*", "hosted tools are skipped, and all others shown"),
    _harmless("m", "system[].cache_control messages[].content[].cache_control", _CACHE),
    _harmless("m", "messages[].content[].* system[].*", "the model sees text, calls and results"),
)  # fmt: skip

ROWS = (*_DONE, *_REFUSED, *_HARMLESS, *_INNER)


def _fields() -> Iterator[tuple[Api, str, Row]]:
    for row in ROWS:
        for api in row.apis:
            for name in row.names:
                yield api, name, row


def _by_api() -> dict[Api, MappingProxyType[str, Row]]:
    table: dict[Api, dict[str, Row]] = {api: {} for api in _LETTERS.values()}
    for api, name, row in _fields():
        assert name not in table[api], (api, name)
        table[api][name] = row
    return {api: MappingProxyType(rows) for api, rows in table.items()}


TABLE = _by_api()
