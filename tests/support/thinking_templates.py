"""Small chat templates that switch thinking as those of known families do."""

__all__ = [
    "ALWAYS",
    "BOTH",
    "EFFORT",
    "EFFORT_CHECKED",
    "NEVER",
    "OPENS",
    "OPTS_IN",
    "OPTS_OUT",
    "TWO_LEVELS",
]

_TURNS = (
    "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}<|im_end|>{% endfor %}"
)
_ASK = "<|im_assistant|>assistant<|im_middle|>"
NEVER = (
    "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content or '' }}"
    "<|im_end|>{% endfor %}" + _ASK
)
# Kimi K2-Thinking: the model opens its thoughts itself.
ALWAYS = _TURNS + _ASK + "{# <think> #}"
# Kimi K2.5 and later: thoughts are open unless `thinking` is false.
OPENS = (
    _TURNS + _ASK + "<think>{% if thinking is defined and thinking is false %}</think>{% endif %}"
)
# DeepSeek-V3.1: no thoughts unless `thinking` is true.
OPTS_IN = (
    "{% if thinking is not defined %}{% set thinking = false %}{% endif %}"
    + _TURNS + _ASK + "{{ '<think>' if thinking else '</think>' }}"
)  # fmt: skip
# Qwen3: an empty thought if `enable_thinking` is false; earlier thoughts go, unless kept.
OPTS_OUT = (
    "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}\n"
    "{% if m.reasoning_content and (preserve_thinking or loop.last) %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# GLM: a switch and levels.
BOTH = OPTS_OUT + "{% if reasoning_effort == 'max' %}Think hard.{% endif %}"
# GLM-5.2: two levels; every other word is the higher one.
TWO_LEVELS = "Effort: {{ 'High' if reasoning_effort == 'high' else 'Max' }}\n" + OPTS_OUT
# gpt-oss: the level stands in the prompt as it is.
EFFORT = "Reasoning: {{ reasoning_effort or 'medium' }}\n" + _TURNS + _ASK
# Mistral: two levels, one of which is off; others are an error.
EFFORT_CHECKED = (
    "{% set effort = reasoning_effort if reasoning_effort is defined else 'none' %}"
    "{% if effort not in ('none', 'high') %}{{ raise_exception('bad effort') }}{% endif %}"
    "[{{ effort }}]" + _TURNS + _ASK
)
