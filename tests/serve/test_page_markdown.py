"""The page's Markdown: what it shows, what stays selected, and that hostile text does nothing."""

import pytest
from chat_page import ChatPage
from hostile_markdown import HOSTILE
from playwright.sync_api import Route, expect

pytestmark = [pytest.mark.browser]

# Renders each text in pieces; returns what is in it that no text may make.
_RENDER = """async (texts) => {
  const { MarkdownView } = await import("/static/markdown.js");
  const wrong = [], policy = [], views = [];
  const note = (event) => policy.push(event.violatedDirective);
  document.addEventListener("securitypolicyviolation", note);
  const attributes = new Set(["href", "class", "start", "title", "target", "rel", "tabindex",
    "role", "aria-label", "type", "aria-hidden", "viewBox", "d", "xmlns", "encoding", "display",
    "mathvariant", "stretchy", "fence", "form", "lspace", "rspace", "separator", "accent",
    "voffset", "minsize", "maxsize", "displaystyle", "scriptlevel", "width", "height",
    "mathbackground", "mathcolor", "mathsize"]);
  const classes = /^(language-.*|hljs-.*|math-.*|align-.*|code|code-head|table|katex)$/;
  const own = "button[aria-label='Copy code']"; // of a block of code
  const banned = ["script", "iframe", "frame", "object", "embed", "portal", "link", "style", "meta",
    "base", "form", "input", "select", "textarea", "img", "video", "audio", "source", "template",
    "annotation-xml", "maction", "foreignObject", "animate", "set", "use", "image",
    `button:not(${own})`, `svg:not(${own} > svg)`].join();
  for (const text of texts) {
    const root = document.createElement("div"), view = new MarkdownView(root);
    document.getElementById("messages").append(root);
    const step = Math.ceil(text.length / 12);
    for (let end = step; end < text.length; end += step) view.update(text.slice(0, end));
    view.update(text, true);
    views.push([text, root]);
  }
  const open = ":is(.math-inline, .math-display):not(:has(math), .math-source)";
  while (document.querySelector(open)) await new Promise((done) => setTimeout(done, 10));
  for (const [text, root] of views) {
    if (root.querySelector(banned)) wrong.push([text, root.querySelector(banned).outerHTML]);
    for (const node of root.querySelectorAll("*")) {
      for (const { name, value } of node.attributes) {
        if (!attributes.has(name)) wrong.push([text, `${name}=${value}`]);
        if (name === "href" && !/^(https?:|mailto:|#)/i.test(value)) wrong.push([text, value]);
      }
      const isOurs = node.closest(own) || node.closest("math");
      const odd = [...node.classList].filter((one) => !classes.test(one));
      if (odd.length && !isOurs) wrong.push([text, odd.join()]);
    }
    root.remove();
  }
  return { wrong, policy };
}"""


def test_hostile_markdown_does_nothing(chat: ChatPage) -> None:
    assert len(set(HOSTILE)) >= 200
    requested: set[str] = set()
    chat.page.on("request", lambda request: requested.add(request.resource_type))
    found = chat.page.evaluate(_RENDER, list(HOSTILE))
    chat.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    assert found == {"wrong": [], "policy": []}
    assert chat.page.evaluate("'hacked' in window") is False
    assert requested <= {"script", "fetch"}  # the page's own: parts of the renderer, its status


def test_what_the_parsers_return_is_sanitized(chat: ChatPage) -> None:
    html = chat.page.evaluate(
        """async () => {
          const { default: MarkdownIt } = await import("/static/vendor/markdown-it.js");
          const { default: hljs } = await import("/static/vendor/highlight.js");
          const { MarkdownView } = await import("/static/markdown.js");
          const evil = "<img src=x id=messages><b data-x=1>x</b>";
          const root = document.createElement("div");
          const value = '<span id="messages" class="hljs-x">x\\n</span>';
          hljs.highlight = () => ({ value });
          new MarkdownView(root).update("```python\\nx\\n```", true);
          while (!root.querySelector(".hljs-x")) await new Promise((done) => setTimeout(done, 10));
          const code = root.querySelector("code").innerHTML;
          Object.getPrototypeOf(new MarkdownIt().renderer).render = () => evil;
          new MarkdownView(root).update("x", true);
          return [code, root.innerHTML];
        }"""
    )
    assert html == ['<span class="hljs-x">x\n</span>', "x"]


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
