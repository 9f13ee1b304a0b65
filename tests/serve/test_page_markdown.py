"""The page's Markdown: what it shows, what stays selected, and that hostile text does nothing."""

import pytest
from chat_page import ChatPage
from hostile_markdown import HOSTILE
from playwright.sync_api import Route, expect

pytestmark = [pytest.mark.browser]

# Renders a text in pieces, and names what is in it that no text may make.
_RENDER = """async (texts) => {
  const { MarkdownView } = await import("/static/markdown.js");
  const wrong = [], policy = [];
  const note = (event) => policy.push(event.violatedDirective);
  document.addEventListener("securitypolicyviolation", note);
  const allowed = new Set(["href", "class", "start", "title", "target", "rel", "tabindex", "role",
    "aria-label", "type", "aria-hidden", "viewBox", "d", "xmlns", "encoding", "display",
    "mathvariant",
    "stretchy", "fence", "form", "lspace", "rspace", "separator", "accent", "voffset",
    "minsize", "maxsize",
    "displaystyle", "scriptlevel", "width", "height", "mathbackground", "mathcolor", "mathsize"]);
  const banned = "script,iframe,object,embed,link,style,meta,base,form,input,img,video,audio," +
    "source,template";
  for (const text of texts) {
    const root = document.createElement("div");
    document.getElementById("messages").append(root);
    const view = new MarkdownView(root);
    for (let end = 7; end < Math.min(text.length, 200); end += 7) view.update(text.slice(0, end));
    view.update(text, true);
    await new Promise((done) => setTimeout(done, 5));
    if (root.querySelector(banned)) wrong.push([text, "element"]);
    for (const node of root.querySelectorAll("*")) {
      for (const { name, value } of node.attributes) {
        if (!allowed.has(name)) wrong.push([text, name]);
        if (name === "href" && !/^(https?:|mailto:|#)/i.test(value)) wrong.push([text, value]);
      }
    }
    root.remove();
  }
  await new Promise((done) => setTimeout(done, 100));
  return { wrong, policy, hacked: "hacked" in window };
}"""


def test_hostile_markdown_does_nothing(chat: ChatPage) -> None:
    assert len(HOSTILE) >= 60
    assert chat.page.evaluate(_RENDER, list(HOSTILE)) == {
        "wrong": [],
        "policy": [],
        "hacked": False,
    }


def test_markdown_is_rendered(chat: ChatPage) -> None:
    chat.ask(
        "say # Head\n\n- one\n- *two*\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n"
        "```python\nx = 1  # n\n```\n\n"
        "A <b>tag</b> \\(x^2\\) and [a link](https://a.example)."
    )
    answer = chat.answers
    expect(answer.locator("h1")).to_have_text("Head")
    expect(answer.locator("li em")).to_have_text("two")
    expect(answer.locator("td.align-right")).to_have_text("2")
    expect(answer.locator("code .hljs-comment")).to_have_text("# n")
    expect(answer.locator("math")).to_be_attached()
    expect(answer.locator("p").last).to_contain_text("A <b>tag</b>")
    expect(answer.locator("a")).to_have_attribute("rel", "noopener noreferrer")


def test_code_and_responses_can_be_copied(chat: ChatPage) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.ask("say text\n\n```\nx = 1\n```")
    for name, text in (("Copy code", "x = 1\n"), ("Copy response", "text\n\n```\nx = 1\n```")):
        chat.button(name).click()
        expect(chat.button(name).locator("path")).to_have_attribute("d", "M5 12l5 5 9-10")
        assert chat.page.evaluate("navigator.clipboard.readText()") == text


def test_a_selection_stays_while_an_answer_streams(chat: ChatPage) -> None:
    kept = chat.page.evaluate(
        """async () => {
          const { MarkdownView } = await import("/static/markdown.js");
          const root = document.createElement("div");
          document.querySelector("main").append(root);
          const view = new MarkdownView(root), kept = [];
          view.update("First *words*.\\n\\nThe last block");
          const places = [root.querySelector("em").firstChild, root.lastElementChild.firstChild];
          for (const place of places) {
            getSelection().selectAllChildren(place.parentNode);
            getSelection().setBaseAndExtent(place, 0, place, 4);
            view.update(view.text + " grows");
            view.update(view.text + " on");
            kept.push(getSelection().toString());
          }
          view.update(view.text + ".\\n\\nAnother", true);
          return [...kept, getSelection().toString(), root.innerText];
        }"""
    )
    assert kept[:3] == ["word", "The ", "The "]
    assert kept[3].split("\n\n") == ["First words.", "The last block grows on grows on.", "Another"]


def test_a_text_in_pieces_is_rendered_as_in_one(chat: ChatPage) -> None:
    text = (
        "Head\n====\n\n1. one\n\n   more\n2. two\n\n> quote\nlazy\n\n"
        "```c\nint x;\n\nint y;\n```\n\n"
        "| a |\n|---|\n| 1 |\n\n    indented\n\n$$\nx\n\n$$\n\n[late] link\n\n---\n\n[late]: https://a.example\n"
    )
    same = chat.page.evaluate(
        """async (text) => {
          const { MarkdownView } = await import("/static/markdown.js");
          const made = [1, 3, text.length].map((step) => {
            const view = new MarkdownView(document.createElement("div"));
            for (let end = step; end < text.length; end += step) view.update(text.slice(0, end));
            view.update(text, true);
            return view.root.innerHTML;
          });
          return [new Set(made).size, made[0].includes("https://a.example")];
        }""",
        text,
    )
    assert same == [1, True]


def test_the_policy_allows_no_inline_script(chat: ChatPage) -> None:
    reply = chat.page.request.get(chat.server.url)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_a_response_of_markdown_is_no_request(chat: ChatPage) -> None:
    seen: list[str] = []

    def note(route: Route) -> None:
        seen.append(route.request.url)
        route.abort()

    chat.page.route("**/evil*", note)
    chat.ask("say ![x](/evil.png) <img src=/evil2.png>")
    expect(chat.answers.locator("a")).to_have_count(0)
    expect(chat.answers).to_contain_text("![x](/evil.png)")
    assert seen == []
