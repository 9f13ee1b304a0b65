"""Request fields that no schema declares: refused by name, or harmless, and why."""

from hybridmoe.serve.field_row import harmless, refused

__all__ = ["HARMLESS", "INNER", "REFUSED"]

_MEDIA = "the model reads and writes text only"
_NO_SAMPLER = "this sampler is not there"

REFUSED = (
    refused("c", "audio", _MEDIA),
    refused("c", "modalities", _MEDIA, ["text"]),
    refused("t", "suffix", "models here are not trained to fill in the middle", ""),
    refused("c", "echo", "the conversation is not part of the response", False),
    refused("c", "best_of", "choices are not ranked; use n", 1),
    refused("r", "background", "a response lives as long as its request", False),
    refused("r", "prompt", "templates are not stored here"),
    refused("c", "preset", "settings are not stored here"),
    refused("m", "mcp_servers", "this server calls no other servers", []),
    refused("m", "container", "this server runs no code"),
    refused("m", "thread", "conversations are not stored; send all messages"),
    refused("m", "compaction", "conversations are not summarized"),
    refused("ctrm", "structural_tag guided_whitespace_pattern", "use a grammar"),
    # Templates.
    refused("c", "chat_template", "conversations are written by the model file's template"),
    refused("c", "documents", "write them into a message", []),
    refused("c", "task input_ids", "conversations are written by the model file's template"),
    refused("ct", "truncate_prompt_tokens", "prompts are not cut: one too long gets 400", -1),
    refused("c", "add_special_tokens", "the template writes them", False),
    refused("ct", "prompt_embeds", "texts and token ids only"),
    # Sampling.
    refused("ctrm", "mirostat dynatemp_range top_a", _NO_SAMPLER, 0),
    refused("ctrm", "adaptive_target", _NO_SAMPLER, -1),
    refused("ctrm", "tfs_z", _NO_SAMPLER, 1),
    refused("ctrm", "min_keep n_indent", "not supported", 0),
    refused("ctrm", "t_max_predict_ms t_max_prompt_ms", "use max_tokens", 0, -1),
    refused("ctrm", "grammar_lazy", "use tools", False),
    refused(
        "ctrm", "grammar_triggers preserved_tokens chat_format chat_parser generation_prompt",
        "the server writes it itself", "", 0, [],
    ),
    refused(
        "ct", "reasoning_budget_start_tag reasoning_budget_end_tag reasoning_budget_end_tags"
        " reasoning_budget_message", "the template has the marks of thoughts", "", [],
    ),
    refused("ct", "reasoning_budget_tokens", "use thinking_budget_tokens", -1),
    refused("ct", "reasoning_control", "not supported", False),
    refused("ctrm", "use_beam_search watermarking", _NO_SAMPLER, False),
    refused("ctrm", "bad_words", "use logit_bias", []),
    refused("ctrm", "allowed_token_ids", "use logit_bias or a grammar", []),
    refused("ctrm", "stop_regex", "use stop", []),
    refused(
        "ctrm", "logits_processors custom_logit_processor custom_params repetition_detection"
        " vllm_xargs", "a server runs no code of a request",
    ),
    refused("ctrm", "lora", "adapters are not supported", []),
    refused("ctrm", "lora_path", "adapters are not supported"),
    # What the response holds.
    refused("ct", "include_stop_str_in_output no_stop_trim", "text ends before it", False),
    refused("ct", "skip_special_tokens", "text never holds special tokens", True),
    refused("ct", "logprob_token_ids", "use logprobs"),
    refused("ct", "post_sampling_probs", "log-probabilities are the model's own", False),
    refused("ct", "return_tokens return_prompt_token_ids", "use return_token_ids", False),
    refused(
        "ct", "return_prompt_text return_hidden_states"
        " return_routed_experts", "not part of a response", False,
    ),
    refused("c", "separate_reasoning parse_tool_calls", "text never holds these", True),
    refused(
        "c", "reasoning_format", "reasoning is always apart", "auto", "deepseek", "deepseek-legacy",
    ),
    refused("c", "thinking_forced_open", "the template decides", False),
    # Other machines and sessions.
    refused("ct", "kv_transfer_params ec_transfer_params", "the cache stays in this process"),
    refused("ct", "session_params", "send the whole conversation"),
)  # fmt: skip

_NOTE = "a note for the operator"
_CACHE = "the prefix cache is always on, and changes no answer"
_PLACE = "one process, one queue"
_IMAGES = "for images, which are refused"

HARMLESS = (
    harmless(
        "ctrm", "user safety_identifier session_id request_id rid extra_key custom_labels"
        " user_profile_id workspace_id client_metadata trace debug verbose", _NOTE,
    ),
    harmless("ctm", "metadata", _NOTE),
    harmless("c", "store", "chat completions are not stored"),
    harmless(
        "ctrm", "prompt_cache_key prompt_cache_options prompt_cache_retention cache_control"
        " cache_prompt cache_salt n_cache_reuse", _CACHE,
    ),
    harmless("ctrm", "id_slot n_keep n_discard keep_alive ttl num_ctx", "set by the server"),
    harmless(
        "ctrm", "service_tier speed inference_geo priority provider route models fallbacks"
        " fallback_credit_token billing_policy betas max_price"
        " routed_dp_rank disagg_prefill_dp_rank data_parallel_rank"
        " bootstrap_host bootstrap_port bootstrap_room", _PLACE,
    ),
    harmless("ctrm", "usage diagnostics return_cached_tokens_details return_meta_info",
              "counts are in every response"),
    harmless("ctrm", "moderation access_programs", "texts are not judged"),
    harmless("cr", "web_search_options max_tool_calls plugins", "hosted tools are not run"),
    harmless("c", "verbosity", "a hint to models that were trained for it"),
    harmless("crm", "truncation transforms truncation_side",
              "a prompt is never cut: one too long gets 400"),
    harmless("cm", "context_management", "a prompt is never cut: one too long gets 400"),
    harmless("ctr", "prediction draft_model ngram_corpus_id speculative spec_type"
              " speculative.n_max speculative.n_min speculative.p_min speculative.type"
              " speculative.ngram_min_hits speculative.ngram_size_m speculative.ngram_size_n",
              "drafts change the speed alone"),
    harmless("m", "return_progress timings_per_token", "its events have no place for them"),
    harmless("r", "background_options", "only with background"),
    harmless("r", "personality", "only with hosted tools"),
    harmless("ctrm", "image image_config images_config max_dynamic_patch min_dynamic_patch"
              " use_audio_in_video media_io_kwargs mm_processor_kwargs return_mm_kwargs", _IMAGES),
    harmless("ctrm", "mirostat_tau mirostat_eta dynatemp_exponent adaptive_decay length_penalty"
              " early_stopping", "only with a sampler that is refused"),
    harmless("ctrm", "guided_decoding_backend backend_sampling grammar_type", "there is one"),
    harmless("ct", "spaces_between_special_tokens", "text never holds special tokens"),
    harmless("ctrm", "stream_interval stream_reasoning sse_ping_interval",
              "the text is the same in other pieces"),
    harmless("ct", "response_fields routed_experts_prompt_start routed_experts_start_len"
              " return_token_offsets", "the whole response is sent"),
    harmless("t", "thinking_token_budget", "raw texts have no thoughts"),
    harmless("r", "stream_options", "the text is the same in other pieces"),
)  # fmt: skip

INNER = (
    refused("c", "messages[].audio", _MEDIA),
    refused("c", "messages[].tools", "use the request's tools", []),
    harmless("c", "messages[].annotations messages[].id messages[].weight messages[].index"
              " messages[].provider_specific_fields messages[].reasoning_details"
              " messages[].tool_calls[].index messages[].tool_calls[].provider_specific_fields"
              " messages[].tool_calls[].extra_content messages[].content[].annotations", _NOTE),
    harmless("c", "messages[].cache_control messages[].content[].cache_control"
              " messages[].content[].prompt_cache_breakpoint tools[].cache_control", _CACHE),
    harmless("c", "tools[].defer_loading tools[].function.defer_loading", "all tools are shown"),
    harmless("ct", "stream_options.include_obfuscation", "the text is the same"),
    harmless("r", "input[].*", "of items, the model sees what the schema lists"),
    refused("ctrm", "structured_outputs.structural_tag structured_outputs.whitespace_pattern",
             "use a grammar"),
    refused("ctrm", "structured_outputs.disable_additional_properties",
             "write additionalProperties in the schema", False),
    harmless("ctrm", "structured_outputs.disable_any_whitespace structured_outputs.backend"
              " structured_outputs.disable_fallback", "JSON is compact, and there is one backend"),
    harmless("m", "output_config.task_budget", "a hint to models that were trained for it"),
    harmless("cr", "reasoning.summary reasoning.generate_summary reasoning.exclude",
              "thoughts are returned whole"),
    harmless("cm", "thinking.display", "thoughts are returned whole"),
    harmless("m", "output_config.format.name output_config.format.strict output_format.name"
              " output_format.strict", "formats are always enforced"),
    harmless("r", "text.format.description", "models here do not read it"),
    harmless("r", "text.verbosity", "a hint to models that were trained for it"),
    harmless("rm", "tools[].*", "hosted tools are skipped, and all others shown"),
    harmless("m", "system[].cache_control messages[].content[].cache_control", _CACHE),
    harmless("m", "messages[].content[].* system[].*", "the model sees text, calls and results"),
)  # fmt: skip
