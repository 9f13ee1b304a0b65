"""Hostile templates: no access to Python's internals, and an error within the budget."""

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from kimi_chat import HELLO, KIMI

from hybridmoe.errors import TemplateError
from hybridmoe.text.chat_template import ChatTemplate


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ ''['__class__']['__mro__'][1].__subclasses__() }}",
     "{{ '' | attr('__class__') }}", "{{ cycler.__init__.__globals__.os }}",
     "{{ lipsum.__globals__['os'].popen('id').read() }}", "{{ self.__init__.__globals__ }}",
     "{{ range.__init__ }}", "{{ namespace.__init__.__globals__ }}",
     "{{ raise_exception.__globals__ }}", "{{ strftime_now.__globals__.re }}",
     "{{ '{0.__class__.__mro__}'.format('') }}", "{{ '{x.__class__}'.format_map({'x': ''}) }}",
     "{{ '%s' | format(raise_exception.__globals__) }}", "{{ messages.sort() }}",
     "{{ messages[0].update({'a': 1}) }}", "{{ messages | map(attribute='__class__') | first }}",
     "{{ (messages | map('attr', '__class__') | list)[0].mro() }}",
     "{{ messages | groupby('__class__') | first | first }}", "{{ dict.mro() }}",
     "{{ dict.fromkeys([1]) }}",
     "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}", "{{ loop.__class__ }}",
     "{{ messages | sum(start=[].__class__) }}", "{{ [].__reduce__() }}",
     "{{ messages[0].append(1) }}", "{{ messages.append(1) }}", "{{ messages.clear() }}",
     "{{ (1).__class__.__base__.__subclasses__() }}", "{{ (1).to_bytes(9, 'big') }}",
     "{{ environment.globals }}{{ messages.pop() }}", "{{ caller.__globals__ }}"],
)  # fmt: skip
def test_no_template_escapes_the_sandbox(source: str) -> None:
    messages = [{"role": "user"}]
    try:
        text = ChatTemplate(source).render(messages)
    except TemplateError as error:
        assert "\n" not in str(error)
    else:  # an undefined value prints nothing
        assert text in ("", "None")  # what append returns
    assert messages == [{"role": "user"}]


@pytest.fixture
def limited_memory() -> Iterator[None]:
    """Limit memory to one GiB more than now, so that a larger allocation raises MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


DOUBLING = (
    "{% set ns = namespace(x=START) %}{% for i in range(200) %}{% set ns.x = STEP %}{% endfor %}"
)


# Errors of the budget, as opposed to MemoryError or a mistake in the template.
LIMITS = re.compile(
    "too large|longer than|too deeply|is unsafe|No filter named|too big|a format with a width"
    "|unusual length|plain conversions|expected at most|300 digits|more than 16384 names"
)


def doubling(start: str, step: str) -> str:
    return DOUBLING.replace("START", start).replace("STEP", step)


@pytest.mark.parametrize(
    "source",
    ["{% for i in range(10**9) %}{% endfor %}", "{{ 'a' * 10**10 }}", "{{ [0] * 10**10 }}",
     "{{ 10 ** 99999 }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
     "{% endfor %}", "{{ range(99999) | map('string') | join('x' * 99999) }}",
     "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
     "{% set s %}{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
     "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
     "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(80) }}",
     "{% for x in [1, 2] recursive %}{% if loop.depth < 80 %}{{ loop([1, 2]) }}{% endif %}"
     "{% endfor %}", "{% block b %}{{ self.b() }}{% endblock %}",
     doubling("'ab'", "ns.x ~ ns.x"), doubling("'ab'", "ns.x + ns.x"), doubling("[1]", "ns.x * 2"),
     doubling("[1]", "[ns.x, ns.x]"), doubling("[1]", "(ns.x, ns.x)"),
     doubling("[1]", "{'a': ns.x, 'b': ns.x}"), doubling("[1]", "dict(a=ns.x, b=ns.x)"),
     doubling("3", "ns.x * ns.x"), doubling("'ab'", "ns.x.replace('a', ns.x)"),
     doubling("'ab'", "ns.x | replace('b', ns.x)"), doubling("'ab'", "[ns.x, ns.x] | join"),
     doubling("'ab'", "ns.x.join([ns.x, ns.x])"), doubling("'ab'", "'%s%s' % (ns.x, ns.x)"),
     doubling("'ab'", "'%s%s' | format(ns.x, ns.x)"), 
     doubling("namespace()", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
     "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
     "{% set ns = namespace() %}{% set ns.a = [ns, ns] %}{{ ns.a }}",
     "{% set top = [[], []] %}{% for side in top %}{% set ns = namespace(at=side) %}"
     "{% for i in range(60) %}{% set new = [] %}{% set _ = ns.at.append(new) %}"
     "{% set _ = ns.at.append(new) %}{% set ns.at = new %}{% endfor %}{% endfor %}"
     "{{ COMPARISON }}".replace("COMPARISON", "top[0] == top[1]"),
     "{% set a = [] %}{% set _ = a.append(a) %}{{ a }}",
     "{{ '%1000000000d' % 1 }}", "{{ '%.1000000000f' % 1 }}", "{{ '%*d' % (10**9, 1) }}",
     "{{ '%9999999999s' | format('x') }}", "{{ '{:>9999999999}'.format(1) }}",
     "{{ '{:>{}}'.format(1, 10**9) }}", "{{ ('{0}' * 99999).format('x' * 99999) }}",
     "{{ ('%(a)s' * 99999) % {'a': 'x' * 99999} }}",
     "{{ 'x'.center(10**10) }}", "{{ 'x'.zfill(10**10) }}", "{{ '\t'.expandtabs(10**10) }}",
     "{{ 'x' | center(10**10) }}", "{{ 'a\nb' | indent(10**10) }}", 
     "{{ [1] | batch(10**9, 0) | list }}",
     "{{ [[1]] | tojson(indent=10**9) }}", "{{ strftime_now('%999999999d') }}",
     "{{ 1.5 | round(10**9, 'ceil') }}", "{{ 1.5 | round(precision=10**9, method='floor') }}",
     "{{ ('a' * 9999999).rfind('b' + 'a' * 4999999) }}",
     "{% set top = [[], []] %}{% for side in top %}{% set ns = namespace(at=side) %}"
     "{% for i in range(60) %}{% set new = [] %}{% set _ = ns.at.append(new) %}"
     "{% set _ = ns.at.append(new) %}{% set ns.at = new %}{% endfor %}{% endfor %}"
     "{% for side in top %}{{ loop.changed(side) }}{% endfor %}",
     "{{ 'x' | wordwrap(1) }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
     "{{ 1" + " + 1" * 20_000 + " }}", "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
     "x" * 300_000, "{{ [[]]" + "[0:]" * 5000 + " }}"],
)  # fmt: skip
@pytest.mark.usefixtures("limited_memory")
def test_no_template_exceeds_its_budget(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridmoe.text.template_budget.DEADLINE_S", 0.5)
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(HELLO)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert LIMITS.search(str(caught.value)), caught.value


def test_copies_of_a_long_message_are_charged() -> None:
    slices = "".join(f"{{% set a{i} = messages[0].content[{i}:] %}}" for i in range(1000))
    with pytest.raises(TemplateError, match="too large"):
        ChatTemplate(slices).render([{"role": "user", "content": "x" * 1_000_000}])


def test_long_conversations_are_within_the_budget() -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": "word " * 500} for i in range(2000)
    ]
    assert len(KIMI.render(messages)) > 5_000_000
