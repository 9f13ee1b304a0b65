"""Written forms of tool calls, by family of models: texts with special tokens.

Sources: Moonshot's tool_call_guidance.md, the chat templates of DeepSeek-V3, -R1, -V3.1 and
GLM-4.5 to 5, DeepSeek-V3.2's encoding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "DEEPSEEK_V3",
    "DEEPSEEK_V31",
    "DSML",
    "DSML_TOKEN",
    "GLM",
    "KIMI",
    "CallForm",
    "XmlForm",
]

DSML_TOKEN = "｜DSML｜"


@dataclass(frozen=True, slots=True)
class XmlForm:
    """Arguments as pairs of a name and a value."""

    key: tuple[str, str]  # around a name
    value_begin: tuple[str, str]  # of a string, of another value
    value_end: str


@dataclass(frozen=True, slots=True)
class CallForm:
    """Texts around calls and their parts. `{number}` is the call's in the conversation."""

    family: str
    tokens: tuple[str, ...]  # special tokens that the vocabulary must have
    section: tuple[str, str]  # around all calls of a response
    call: tuple[str, str, str]  # before the name, behind it, behind the arguments
    between: str  # calls
    marks: Mapping[str, str]  # of a parser, by text; see text/call_reader.py
    xml: XmlForm | None = None  # None: arguments are a JSON object
    trigger: tuple[str, ...] = field(default=())  # tokens that begin calls; the first: a section
    may_break: bool = False  # a line may end behind each part


_KIMI_TOKENS = (
    "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>", "<|tool_call_end|>",
)  # fmt: skip
_DEEPSEEK_TOKENS = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
)  # fmt: skip
_ROLES = ("section begin", "section end", "call begin", "arguments begin", "call end")

KIMI = CallForm(
    family="Kimi",
    tokens=_KIMI_TOKENS,
    section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    call=(
        "<|tool_call_begin|>functions.",
        ":{number}<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    ),
    between="",
    marks={
        **dict(zip(_KIMI_TOKENS, _ROLES, strict=True)),
        "<|tool_call_section_begin|>": "stray begin",
        "<|tool_call_section_end|>": "stray end",
    },
    trigger=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
)
DEEPSEEK_V31 = CallForm(
    family="DeepSeek-V3.1",
    tokens=_DEEPSEEK_TOKENS,
    section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    call=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    between="",
    marks=dict(zip(_DEEPSEEK_TOKENS, _ROLES, strict=True)),
    trigger=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
)
DEEPSEEK_V3 = CallForm(
    family="DeepSeek-V3",
    tokens=_DEEPSEEK_TOKENS,
    section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    call=(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "\n```json\n",
        "\n```<｜tool▁call▁end｜>",
    ),
    between="\n",
    marks=DEEPSEEK_V31.marks,
    trigger=DEEPSEEK_V31.trigger,
)
GLM = CallForm(
    family="GLM",
    tokens=(
        "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    ),
    section=("", ""),
    call=("<tool_call>", "", "</tool_call>"),
    between="",
    marks={
        "<tool_call>": "call begin",
        "\n<tool_call>": "call begin",
        "</tool_call>": "call end",
        "<arg_key>": "key begin",
        "</arg_key>": "key end",
        "<arg_value>": "value begin",
        "</arg_value>": "value end",
    },
    xml=XmlForm(("<arg_key>", "</arg_key>"), ("<arg_value>", "<arg_value>"), "</arg_value>"),
    trigger=("<tool_call>",),
    may_break=True,
)  # fmt: skip


def _dsml(section: str) -> CallForm:
    return CallForm(
        family="DeepSeek-V3.2",
        tokens=(),
        section=(f"<{DSML_TOKEN}{section}>\n", f"</{DSML_TOKEN}{section}>"),
        call=(f'<{DSML_TOKEN}invoke name="', '">\n', f"</{DSML_TOKEN}invoke>\n"),
        between="",
        marks={
            f"{lines}<{DSML_TOKEN}{name}>": "section begin"
            for name in ("function_calls", "tool_calls")
            for lines in ("", "\n\n")
        }
        | {
            f"</{DSML_TOKEN}function_calls>": "section end",
            f"</{DSML_TOKEN}tool_calls>": "section end",
            f"<{DSML_TOKEN}invoke": "call begin",
            f"</{DSML_TOKEN}invoke>": "call end",
            f"<{DSML_TOKEN}parameter": "value begin",
            f"</{DSML_TOKEN}parameter>": "value end",
        },
        xml=XmlForm(
            (f'<{DSML_TOKEN}parameter name="', '" string="'),
            ('true">', 'false">'),
            f"</{DSML_TOKEN}parameter>\n",
        ),
        trigger=(DSML_TOKEN,),
    )


DSML = {name: _dsml(name) for name in ("function_calls", "tool_calls")}
