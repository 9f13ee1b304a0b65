"""Rewrites a template's syntax tree so that loops and literals draw on the render budget."""

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.visitor import NodeTransformer

__all__ = ["BoundedGenerator", "MeteringTransformer"]


class BoundedGenerator(CodeGenerator):
    """Generates Python code within the deadline."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.environment.tick(0)  # type: ignore[attr-defined]
        return super().visit(node, *args, **kwargs)


class MeteringTransformer(NodeTransformer):
    """Inserts a tick into loops, and filters of text/template_sandbox.py around literals."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        cost = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        tick = nodes.EnvironmentAttribute("tick")
        call = nodes.Call(tick, [nodes.Const(cost)], [], None, None)
        node.body.insert(0, nodes.ExprStmt(call))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_checked")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_checked")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), "_concat")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_charged")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_charged")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _filtered(node, "_charged")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_charged") if isinstance(node.arg, nodes.Slice) else node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
