"""SGLang's parsers of tool calls as an oracle: one process reads all outputs. Run as a script.

Needs an interpreter with `llm-router-utils` (0.8.1), which carries these parsers: an environment of
its own, since it needs other versions of common packages. TOOL_ORACLE_PYTHON is its path.
"""

import json
import sys

__all__: list[str] = []


def main() -> None:
    """Read [[parser, tools, text], ...] from standard input; write [[text, calls], ...]."""
    from llm_router_utils.sglang.srt.entrypoints.openai.protocol import Tool
    from llm_router_utils.sglang.srt.function_call.function_call_parser import FunctionCallParser

    out = []
    for name, tools, text in json.load(sys.stdin):
        declared = [Tool.model_validate(tool) for tool in tools]
        detector = FunctionCallParser.ToolCallParserEnum[name]()
        result = detector.detect_and_parse(text, declared)
        calls = [(call.name, call.parameters) for call in result.calls]
        out.append((result.normal_text, calls))
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
