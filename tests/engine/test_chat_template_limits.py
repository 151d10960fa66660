"""Templates of a hostile model: none reaches Python, and none takes more time or memory than a chat needs."""

import subprocess
import sys

import pytest

from remuda.engine import chat_template
from remuda.engine.chat_template import ChatTemplate
from remuda.engine.errors import CheckpointError, InvalidRequestError

MESSAGES = [{"role": "user", "content": "hi"}]

NS = "{% set ns = namespace(s='ab', t='ab') %}"
SIXTY = NS + "{% for i in range(60) %}"
MEGABYTE = "{% set s = 'a' * 1000000 %}"
KEEP = "{% set ns = namespace(l=[]) %}{% for i in range(90000) %}{% set ns.l = [ns.l, "

# Each block shows the one before it ten times.
BLOCKS = "{% block b0 %}{% endblock %}" + "".join(
    f"{{% block b{i} %}}{f'{{{{ self.b{i - 1}() }}}}' * 10}{{% endblock %}}" for i in range(1, 14)
)

GREEDY = {
    "string times": "{{ 'a' * 10**10 }}",
    "times string": "{{ 10**10 * 'a' }}",
    "list times": "{% set x = [1] * 10**9 %}",
    "power": "{{ 9 ** (10**9) }}",
    "squares": NS + "{% set ns.s = 3 %}{% for i in range(60) %}{% set ns.s = ns.s * ns.s %}{% endfor %}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "empty loops": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for i in [0] recursive %}{% for j in range(9) %}{% endfor %}{{ loop([0]) }}{% endfor %}",
    "doubling by +": SIXTY + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by ~": SIXTY + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by %": SIXTY + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "doubling by block": SIXTY + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "doubling by join": SIXTY + "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "doubling by replace": SIXTY + "{% set ns.s = ns.s | replace('a', 'aa') %}{% endfor %}",
    "nesting, written": SIXTY + "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "nesting, as JSON": SIXTY + "{% set ns.s = {'a': ns.s, 'b': ns.s} %}{% endfor %}{{ ns.s | tojson }}",
    "nesting, as text": SIXTY + "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | upper | length }}",
    "nesting, compared": SIXTY
    + "{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}",
    "nesting, hashed": SIXTY + "{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ {ns.s: 1} }}",
    "nesting by dict": SIXTY + "{% set ns.s = dict(a=ns.s, b=ns.s) %}{% endfor %}",
    "nesting by cycler": SIXTY + "{% set ns.s = cycler(ns.s, ns.s).items %}{% endfor %}",
    "nesting by arguments": SIXTY.replace(NS, NS + "{% macro f() %}{% set ns.s = varargs %}{% endmacro %}")
    + "{{ f(ns.s, ns.s) }}{% endfor %}",
    "replace": MEGABYTE + "{{ s | replace('a', s) | length }}",
    "replace method": MEGABYTE + "{{ s.replace('a', s) | length }}",
    "join": MEGABYTE + "{{ range(90000) | join(s) | length }}",
    "join method": MEGABYTE + "{{ s.join('b' * 90000) | length }}",
    "kept slices": MEGABYTE + KEEP + "s[1:]] %}{% endfor %}",
    "kept methods": MEGABYTE + KEEP + "s.upper()] %}{% endfor %}",
    "kept filters": MEGABYTE + KEEP + "s | upper] %}{% endfor %}",
    "kept lists": MEGABYTE + KEEP + "s | list] %}{% endfor %}",
    "macro recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "macro explosion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "block explosion": BLOCKS,
    "text in a block": "{% set x %}{% for i in range(99999) %}" + "t" * 100_000 + "{% endfor %}{% endset %}",
    "text written": "{% for i in range(99999) %}" + "t" * 100_000 + "{% endfor %}",
    "sum of lists": "{{ [[1]] | sum(start=[]) }}",
    "format width": "{{ '%9999999999d' % 1 }}",
    "format star": "{{ '%*d' % (999999999, 1) }}",
    "format precision": "{{ '%.999999999f' % 1 }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "indent by text": MEGABYTE + "{{ 'a\nb' | indent(s) }}",
    "JSON indent": "{{ [1] | tojson(indent=10**10) }}",
    "JSON indent by text": MEGABYTE + "{{ [1] | tojson(indent=s) }}",
    "JSON depth": SIXTY.replace("60", "2000") + "{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}",
    "round": "{{ 1 | round(10**9) }}",
    "strftime": "{{ strftime_now('%99999999999d') }}",
    "length of a range": "{{ range(10**20) | length }}",
}

FORBIDDEN = {
    "class": "{{ ''.__class__.x }}",
    "subclasses": "{{ ''.__class__.__base__.__subclasses__() }}",
    "item": "{{ ''['__class__'].x }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "init": "{{ cycler.__init__.__globals__.os }}",
    "self": "{{ self.__init__.__globals__ }}",
    "joined name": "{{ ''['__cla' ~ 'ss__'].mro() }}",
    "generator frame": "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "map attribute": "{{ (['a'] | map(attribute='__class__') | first).x }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "pop": "{{ messages[0].pop('role') }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**10) }}",
    "translate": "{{ 'a'.translate({97: 'xx'}) }}",
    "encode": "{{ 'a'.encode('utf-16') }}",
    "safe method": "{{ ('a' | safe).center(10**10) }}",
    "autoescaped method": "{% autoescape true %}{% set m %}a{% endset %}{{ m.center(10**10) }}{% endautoescape %}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "format method": "{{ '{:>10000000000}'.format('a') }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "format attributes": "{{ '{0.__class__}'.format('') }}",
    "filter by name": "{{ ['a'] | map('center', 10**10) | list }}",
    "center": "{{ 'a' | center(10**10) }}",
    "attr": "{{ '' | attr('__class__') }}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}",
    "slice": "{{ [1] | slice(10**10) | list }}",
    "wordwrap": "{{ 'a' | wordwrap(1) }}",
    "pprint": "{{ messages | pprint }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "internal filter": "{{ -1000 | tick }}",
    "namespace text": NS + "{% set ns.s = ns %}{{ ns }}",
    "function text": "{{ raise_exception }}",
    "JSON options": "{{ [1] | tojson(cls=1) }}",
}


@pytest.mark.parametrize("source", GREEDY.values(), ids=GREEDY)
def test_greedy_templates_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A part of the budget, to be quick; the time limit is far away, so it is the budget that stops them.
    monkeypatch.setattr(chat_template, "_BASE_UNITS", 2**21)
    monkeypatch.setattr(chat_template, "_MAX_SECONDS", 600.0)
    template = ChatTemplate(source)
    with pytest.raises(InvalidRequestError, match="cannot render these messages"):
        template.render(MESSAGES)


@pytest.mark.parametrize("source", FORBIDDEN.values(), ids=FORBIDDEN)
def test_forbidden_things(source: str) -> None:
    with pytest.raises((InvalidRequestError, CheckpointError)):
        ChatTemplate(source).render(MESSAGES)


def test_the_whole_budget_is_little_memory() -> None:
    """At the real limits, under 600 MB of address space more than the interpreter has: no MemoryError."""
    names = [
        "string times",
        "doubling by +",
        "nesting, as text",
        "join",
        "kept slices",
        "kept lists",
        "text written",
    ]
    code = (
        "import resource, sys\n"
        "from remuda.engine.chat_template import ChatTemplate\n"
        "from remuda.engine.errors import InvalidRequestError\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + 600 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for source in sys.argv[1:]:\n"
        "    try: ChatTemplate(source).render([{'role': 'user', 'content': 'hi'}])\n"
        "    except InvalidRequestError: continue\n"
        "    sys.exit(source)\n"
    )
    sources = [
        GREEDY[name] if len(GREEDY[name]) < 100_000 else "{% for i in range(99999) %}tttttttttt{% endfor %}" * 40
        for name in names
    ]
    done = subprocess.run([sys.executable, "-c", code, *sources], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_MAX_SECONDS", 0.0)
    with pytest.raises(InvalidRequestError, match="it takes too long"):
        ChatTemplate("{% for i in [1, 2] %}{{ i }}{% endfor %}").render(MESSAGES)


def test_long_conversations_fit() -> None:
    """Thousands of messages, a list built of them one by one, and ten megabytes in one message."""
    source = (
        "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m.role ~ ': ' ~ m.content] %}"
        "{% endfor %}{{ ns.l | join('\\n') }}"
    )
    messages = [{"role": "user", "content": "x" * 20}] * 3000
    assert ChatTemplate(source).render(messages) == "\n".join(["user: " + "x" * 20] * 3000)
    content = "漢" * 10_000_000
    text = ChatTemplate("{{ (messages[0].content | trim) + '!' }}").render([{"role": "user", "content": content}])
    assert text == content + "!"


def test_budgets_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_BASE_UNITS", 2**19)
    template = ChatTemplate("{% for i in range(3000) %}{{ i }}{% endfor %}")
    assert len({template.render(MESSAGES) for _ in range(20)}) == 1
