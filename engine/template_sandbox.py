"""The jinja2 environment in which a model's chat template runs: no access to Python, a budget for its work.

jinja2's sandbox keeps a template from our objects, but not from `'a' * 10**10`. Here every operation that
can make something larger than its operands is charged before it runs, others by what they return, lists by
all that they refer to, and loops, macros and blocks by the pass. What cannot be charged so is left out.
"""

import re
from types import BuiltinMethodType, MethodType
from typing import Any, Final

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from remuda.engine.template_budget import (
    STEP_UNITS,
    TemplateLimitError,
    charge,
    charge_text,
    charged,
    charged_whole,
    counted,
    size,
    text,
)
from remuda.engine.template_filters import chat_template_filters, join_texts, replace_text

_MAX_INT_BITS: Final = 4096

# jinja2 does not parse these as names of filters, so a template cannot use them itself.
_TICK: Final = "pass of a loop"
_COUNTED: Final = "counted iteration"

_SAFE_METHODS: Final[dict[type, frozenset[str]]] = {
    str: frozenset(
        {"capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit"}
        | {"islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition"}
        | {"removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip"}
        | {"split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"}
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    int: frozenset(),
    float: frozenset(),
    bytes: frozenset(),
}


class _Generator(CodeGenerator):
    """Sends through the environment what jinja2 compiles to plain Python: `~`, slices, lists and dicts."""

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.charge_literal(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.charge_literal(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "store":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.charge_literal(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.call_binop(context, '~', " * (len(node.nodes) - 1))
        self.visit(node.nodes[0], frame)
        for operand in node.nodes[1:]:
            self.write(", ")
            self.visit(operand, frame)
            self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.take_slice(")
        self.visit(node.node, frame)
        self.write(", slice(")
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            if bound is None:
                self.write("None")
            else:
                self.visit(bound, frame)
            self.write(", ")
        self.write("))")


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks text for training, is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates, with the settings that transformers gives its own."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Constants are not computed ahead: that would be work without a budget.
            optimized=False,
            finalize=_finalize,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        self.filters = chat_template_filters() | {_TICK: _tick, _COUNTED: counted}
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            loop.iter = self._filter_node(loop.iter, _COUNTED)
        for repeated in list(template.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block))):
            written = sum(len(data.data) for data in repeated.find_all(nodes.TemplateData))
            units = nodes.Const(STEP_UNITS + written, lineno=repeated.lineno)
            tick = nodes.ExprStmt(self._filter_node(units, _TICK), lineno=repeated.lineno)
            body: list[nodes.Node] = getattr(repeated, "body")  # noqa: B009
            body.insert(0, tick.set_environment(self))
        return template

    def _filter_node(self, node: nodes.Node, name: str) -> nodes.Node:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno).set_environment(self)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Charge for an operator, then apply it."""
        if operator == "~":
            return text(left) + text(right)
        if operator == "%" and isinstance(left, str):
            return _format(left, right)
        charge(STEP_UNITS + _size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Charge for a call, then make it. Of built-in types only the methods listed above are called."""
        charge(STEP_UNITS)
        if not isinstance(__obj, Macro) or __obj.catch_varargs or __obj.catch_kwargs:
            charged_whole((args, kwargs))
        if isinstance(__obj, BuiltinMethodType | MethodType):
            owner, name = __obj.__self__, __obj.__name__
            charge(size(owner))
            for kind, safe_methods in _SAFE_METHODS.items():
                if isinstance(owner, kind) and name not in safe_methods:
                    raise SecurityError(f"the method {name} of {kind.__name__} is not available")
            if isinstance(owner, str) and name == "join":
                return join_texts(owner, *args)
            if isinstance(owner, str) and name == "replace":
                return replace_text(owner, *args, **kwargs)
        return charged(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> None:
        """No special treatment: `str.format` is among the methods that are not available."""

    def charge_literal(self, value: Any) -> Any:
        """A list, a tuple or a dict that the template writes out, charged."""
        return charged_whole(value)

    def take_slice(self, value: Any, part: slice) -> Any:
        """`value[part]`, charged."""
        charge(STEP_UNITS)
        return charged(value[part])


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Called with each value written out; it takes the context so as not to be called at compile time."""
    charge_text(value)
    return value


@pass_context
def _tick(context: Context, units: int) -> None:
    charge(units)


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """Units of `left operator right`; raises TemplateLimitError for huge integers."""
    sizes = size(left) + size(right)
    if operator == "+":
        return sizes
    if operator == "*" and sizes:
        return sizes * max(0, *(n for n in (left, right) if isinstance(n, int)))
    bits = 0
    if isinstance(left, int) and isinstance(right, int):
        if operator == "*":
            bits = left.bit_length() + right.bit_length()
        elif operator == "**":
            bits = left.bit_length() * max(right, 0)
    if bits > _MAX_INT_BITS:
        raise TemplateLimitError(f"it computes integers of more than {_MAX_INT_BITS} bits")
    return 0


def _format(pattern: str, values: Any) -> str:
    """`pattern % values`, without the widths and precisions that can make anything long."""
    if re.search(r"%[^%a-zA-Z]*(\*|\d{3})", pattern):
        raise TemplateLimitError("it formats to a width of more than 99 characters")
    for _ in range(pattern.count("%")):
        charge_text(values)
    result: str = charged(pattern % values)
    return result
