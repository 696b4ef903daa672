#!/usr/bin/env python3
"""make_vectors.py - renders conversations with Jinja2 as the transformers library does.

Writes tests/model/chat_templates/expected.json. Needs python3-jinja2. The environment is that of
transformers.utils.chat_template_utils (_compile_jinja_template): sandboxed, trim_blocks,
lstrip_blocks, loop controls, its tojson, raise_exception and strftime_now.
"""
import json
import pathlib
import time

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).resolve().parents[2] / "tests/model/chat_templates"
NOW = 1754395200  # 2025-08-05T12:00:00Z: the same day from UTC-12 to UTC+11
SPECIAL = {"bos_token": "<BOS>", "eos_token": "<EOS>"}

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather at a place \u2014 now.",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Name of the city"},
        "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
        "days": {"type": "array", "items": {"type": "integer"}},
        "detail": {"oneOf": [{"type": "boolean"}, {"type": "number", "default": 1.5}]},
        "where": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}},
    }}}}
TIME = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}


def call(arguments):
    return {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "id": "functions.get_weather:0", "function": {"name": "get_weather", "arguments": arguments}}]}


HELLO = [{"role": "user", "content": "Hello, \u4e16\u754c \U0001f600!"}]
TURNS = [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  What is 1 < 2 & \"3\"?"},
         {"role": "assistant", "content": "True."}, {"role": "user", "content": "Sure?"}]
THINKING = [{"role": "user", "content": "Think."},
            {"role": "assistant", "content": "<think>\nHm, hm.\n</think>\n\nThought."}, {"role": "user", "content": "More."}]
TOOLS = [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "Weather in Paris?"},
         call({"city": "Paris", "n": 3, "x": 0.1, "deep": {"a": [1, None, True]}}),
         {"role": "tool", "tool_call_id": "functions.get_weather:0", "name": "get_weather", "content": "{\"t\": 20}"},
         {"role": "assistant", "content": "20 degrees."}, {"role": "user", "content": "Thanks."}]
TOOL_TEXT = TOOLS[:2] + [call("{\"city\": \"Paris\"}")] + TOOLS[3:4]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]}]

CASES = {
    "hello": dict(messages=HELLO),
    "no_prompt": dict(messages=HELLO, add_generation_prompt=False),
    "turns": dict(messages=TURNS),
    "thinking": dict(messages=THINKING),
    "thinking_on": dict(messages=THINKING, variables={"thinking": True, "enable_thinking": True, "reasoning_effort": "high"}),
    "thinking_off": dict(messages=HELLO, variables={"thinking": False, "enable_thinking": False}),
    "ends_with_answer": dict(messages=TURNS[:3], add_generation_prompt=False),
    "tools": dict(messages=TOOLS, tools=[WEATHER, TIME]),
    "tool_result_last": dict(messages=TOOLS[:4], tools=[WEATHER]),
    "tool_text": dict(messages=TOOL_TEXT),
    "builtin_tools": dict(messages=HELLO, variables={"builtin_tools": ["browser", "python"], "model_identity": "You are me."}),
    "parts": dict(messages=PARTS),
    "empty": dict(messages=[{"role": "user", "content": ""}]),
}

# Pieces of the language that the templates above use in one way only.
SNIPPETS = {
    "blocks": "a\n  {% if true %}\n b \n  {%- else %}c{% endif +%}\n  {# note #}\nd {{- ' e ' -}} \n f\n",
    "plus": "x\n   {%+ if true %}y{% endif %}\n\n",
    "slices": "{{ 'abcdef'[1:4] }} {{ 'abcdef'[::-1] }} {{ [1,2,3,4][-2:] }} {{ [1,2,3,4][::2] }} {{ [1,2,3][5:] }} {{ 'a\u00e9\u4e16'[1] }}",
    "numbers": "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 * 3.5 }} {{ 10 - 3 - 2 }} {{ 1.0 }} {{ 100000000000000000000.0 }} {{ 0.00001 }} {{ 0.1 + 0.2 }}",
    "reprs": "{{ ['a', \"it's\", 1, 1.5, true, none, {'k': ['\u00e9\\n']}] }} {{ {} }} {{ '%s' ~ 3 ~ none }}",
    "logic": "{{ 0 or 'x' }} {{ '' and 'y' }}| {{ not 0 }} {{ 1 if 0 }} {{ 1 < 2 and 2 >= 2 }} {{ 'a' in 'cat' }} {{ 'k' in {'k': 1} }} {{ 3 not in [1, 2] }} {{ 1 == 1.0 }} {{ true == 1 }}",
    "loops": "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ loop.index }}{{ k }}{{ v }}{{ loop.last }}{% if not loop.last %},{% endif %}{% endfor %}{% for x in [] %}{% else %}none{% endfor %}{% for i in range(6) if i % 2 %}{% if i == 5 %}{% break %}{% endif %}{{ i }}/{{ loop.length }} {% endfor %}{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "scopes": "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{% if true %}{% set x = 5 %}{% endif %}{{ x }}",
    "macros": "{% macro m(a, b='B', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, c=3) }}{{ m(b=2, a=1) }}{{ m('x') | length }}",
    "strings": "{{ ' a b  c '.split() }}{{ 'a,b,,c'.split(',') }}{{ 'a,b,c'.split(',', 1) }}{{ '  x\\n'.strip() }}|{{ 'xxaxx'.strip('x') }}{{ 'xxaxx'.lstrip('x') }}{{ 'aXb'.lower() }}{{ 'aXb'.upper() }}{{ 'hello world'.title() }}{{ 'hELLO'.capitalize() }}{{ 'aaa'.replace('a', 'b', 2) }}{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'bc')) }}{{ ','.join(['a', 'b']) }}",
    "filters": "{{ ' x ' | trim }}{{ [3, 1, 2] | sort }}{{ [1, 2] | join('-') }}{{ nothing | default('d') }}{{ '' | default('e', true) }}{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}{{ [{'n': 1}, {'n': 2}] | map(attribute='n') | list }}{{ ['a', 'b'] | map('upper') | join }}{{ [1, 2, 3, 4] | select('even') | list }}{{ [{'r': 'u', 'n': 1}, {'r': 'a', 'n': 2}] | selectattr('r', 'equalto', 'a') | map(attribute='n') | list }}{{ [1, 2, 1] | unique | list }}{{ 'ab' | reverse }}{{ '12' | int + 1 }}{{ 'x' | int }}{{ -3 | abs }}{{ [1, 2] | first }}{{ [1, 2] | last }}{% for k, v in {'a': 1} | items %}{{ k }}{{ v }}{% endfor %}",
    "tests": "{{ x is defined }}{{ x is not defined }}{{ none is none }}{{ 'a' is string }}{{ {} is mapping }}{{ [] is iterable }}{{ 'a' is sequence }}{{ 1 is number }}{{ true is boolean }}{{ 4 is divisibleby 2 }}{{ 3 is odd }}{{ 1 is in [1, 2] }}{{ false is false }}{{ x is iterable }}{{ 1.5 is float }}{{ 2 is integer }}{{ true is integer }}{{ 2 is eq 2 }}",
    "json": "{{ {'b': [1, 1.0, true, none, '\u00e9\\n\"<']} | tojson }}{{ {'b': 1, 'a': [1, {}]} | tojson(indent=2) }}{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}{{ [] | tojson(indent=2) }}",
    "attributes": "{{ {'items': 1}['items'] }}{{ {'a': {'b': 2}}.a.b }}{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('z', 'y') }}{{ {'a': 1}.z }}{{ {'a': 1}['z'] }}{{ [1, 2][5] }}{{ 'ab'[-1] }}{% for k in {'p': 1, 'q': 2} %}{{ k }}{% endfor %}{{ {'a': 1}.keys() | list }}{{ {'a': 1}.values() | list }}",
    "sets": "{% set a, b = 1, 'two' %}{{ a }}{{ b }}{% set c %}text {{ a }}{% endset %}{{ c }}{% set t = (1, 2) %}{{ t | length }}",
    "escapes": "{{ 'a\\n\\t\\\\\\'\\q' }}{{ \"x\" 'y' }}",
    "filter_first": "{{ 'a' + 'b' | upper }}{{ -1 | abs }}{{ (1, 2)[0] }}{{ 'a' ~ (1 + 2) }}",
}


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: time.strftime(format, time.gmtime(NOW))
    return env


def render(template, case):
    names = dict(SPECIAL, messages=case["messages"], tools=case.get("tools"), documents=None,
                 add_generation_prompt=case.get("add_generation_prompt", True), **case.get("variables", {}))
    try:
        return {"text": template.render(**names)}
    except Exception as error:  # what a template refuses or trips over
        return {"error": type(error).__name__}


def main():
    env = environment()
    out = {"now": NOW, "special_tokens": SPECIAL, "cases": CASES, "templates": {}, "snippets": {}}
    for path in sorted(HERE.glob("*.jinja")):
        template = env.from_string(path.read_text())
        out["templates"][path.stem] = {name: render(template, case) for name, case in CASES.items()}
    for name, source in SNIPPETS.items():
        out["snippets"][name] = {"source": source, "text": env.from_string(source).render()}
    (HERE / "expected.json").write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")


main()
