"""Compaction in the chat: before the context ends, on `/compact`, and what may go wrong."""

from fake_llm import FakeLLM
from terminal_chat import Chat, Terminal

import hybridmoe
from hybridmoe.cli.render import Screen
from hybridmoe.cli.session import Session
from hybridmoe.cli.talk import Talk

SUMMARY = "what was said"
SAID = "(a summary of 2 tokens replaces them: the conversation has "


def fill(chat: Chat, num_turns: int, size: int = 250) -> None:
    """Ask questions of `size` tokens, a character each; the answers are as long."""
    for i in range(num_turns):
        chat.ask(f"{i}".ljust(size, "x"))
    assert len(chat.said) == 2 * num_turns


def contents(chat: Chat) -> list[str]:
    return [text for _, text in chat.said]


def test_a_conversation_goes_on_past_the_end_of_the_context(chat: Chat) -> None:
    fill(chat, 7)
    shown = [chat.ask(f"{i}".ljust(250, "x")) for i in range(7, 40)]
    limit = FakeLLM.context_tokens
    assert all(sum(len(m["content"]) for m in prompt) <= limit for prompt in chat.llm.prompts)
    num_summaries = sum("summarizing the first" in text for text in shown)
    assert 4 <= num_summaries <= 12
    assert sum(SUMMARY in text for text in contents(chat)) == 1
    assert chat.said[1] == ("assistant", SUMMARY)
    assert chat.said[-1][1].startswith("you said 39")


def test_one_line_before_and_one_behind_tell_of_it(chat: Chat) -> None:
    fill(chat, 7)
    chat.session.system = "Be brief."
    shown = chat.ask("y" * 250).splitlines()
    assert shown[0] == "summarizing the first 12 of 14 messages ..."
    assert shown[1].startswith(SAID)
    assert shown[1].endswith("tokens, the context 4096)")
    assert shown[2].startswith("you said yyy")
    assert contents(chat)[2].startswith("6xxx")  # the last turn is kept
    request, prompt = chat.llm.prompts[-2:]
    assert request[0] == prompt[0] == {"role": "system", "content": "Be brief."}
    assert len(request) == 14  # system, 12 messages, and what asks for the summary


def test_a_summary_has_no_thoughts_its_own_length_and_the_sessions_sampling(chat: Chat) -> None:
    chat.run("/params temperature 0.5")
    chat.session.params |= {"max_tokens": 5, "stop": ["x"]}
    chat.ask("one")
    chat.ask("two")
    chat.run("/compact")
    assert chat.llm.params == {"temperature": 0.5, "max_tokens": 256}
    assert chat.llm.thinking is not None
    assert chat.llm.thinking.mode == "off"


def test_compact_keeps_the_last_turn(chat: Chat) -> None:
    assert chat.run("/compact") == "error: nothing to summarize before the last turn\n"
    chat.ask("one")
    assert chat.run("/compact") == "error: nothing to summarize before the last turn\n"
    chat.ask("two")
    chat.ask("three")
    assert chat.run("/compact").startswith("summarizing the first 4 of 6 messages ...\n" + SAID)
    assert contents(chat)[1:] == [SUMMARY, "three", "you said three"]


def test_an_interrupted_or_empty_summary_changes_nothing(chat: Chat) -> None:
    fill(chat, 7)
    before = chat.said
    chat.llm.interrupted_after = 0
    assert chat.run("/compact").endswith("(stopped)\n")
    assert chat.ask("y" * 250).endswith("(stopped)\n")
    assert chat.said == before
    chat.llm.interrupted_after = None
    chat.llm.summary = [" "]
    assert chat.run("/compact").endswith(
        "error: the model wrote no summary; the conversation stays as it was\n"
    )
    assert chat.said == before
    shown = chat.ask("y" * 250)
    assert "(not summarized: the model wrote no summary" in shown
    assert chat.said[-1][1].startswith("you said yyy")


def test_a_message_that_does_not_fit_by_itself_costs_no_history(chat: Chat) -> None:
    fill(chat, 3)
    assert "summarizing" not in chat.ask("z" * 4000)
    assert "summarizing" not in chat.ask("z" * 20_000)
    assert contents(chat)[0].startswith("0xxx")


def test_turns_longer_than_the_context_are_not_read_at_once(chat: Chat) -> None:
    fill(chat, 3, 600)
    chat.session.messages += chat.session.messages[:2] * 2
    assert chat.run("/compact").startswith("summarizing the first 6 of 10 messages")
    chat.session.messages[0]["content"] = "w" * 5000
    chat.session.messages[2:2] = [{"role": "user", "content": "and"}]
    assert chat.run("/compact") == "error: the oldest turns are longer than the context\n"


def test_the_embedded_model_reads_only_what_asks_for_the_summary() -> None:
    out = Terminal()
    with hybridmoe.load(context_tokens=384) as llm:
        talk = Talk(llm, Session("demo", params={"temperature": 0.0}), Screen(out, use_color=False))
        for i in range(10, 40):
            talk.ask(f"What is {i} + {i + 7}?")
        assert talk.totals.generated_tokens > 20
        talk.compact()
        timing = talk.totals.last and talk.totals.last.timing
        assert timing is not None
        assert timing.cached_tokens > timing.prompt_tokens / 2
    shown = out.getvalue()
    assert "summarizing the first" in shown
    assert "error" not in shown
    assert "not summarized" not in shown
