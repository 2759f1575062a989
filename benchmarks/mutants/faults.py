"""Small faults in a Python source: one token or one statement changed, the rest left as it is.

Faults are edits of the text, so that line numbers stay and what reads sources (Triton's
interpreter does) sees the fault. Left alone are annotations, decorators, docstrings, f-strings,
`assert`, the texts of errors, and what runs only under a type checker.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

COMPARE = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
}
SWAPPED = {"min": "max", "any": "all", "minimum": "maximum", "amin": "amax", "argmin": "argmax"}
SWAPPED |= {"zeros": "ones", "zeros_like": "ones_like", "floor": "ceil"}
SWAPPED |= {new: old for old, new in SWAPPED.items()}


@dataclass(frozen=True)
class Fault:
    """One change of one file."""

    file: str
    line: int  # of the file, from 1
    kind: str
    start: int  # bytes of the file that are replaced
    end: int
    text: str  # what they are replaced by
    before: str  # the line as it is, stripped
    after: str  # the same line with the fault, stripped

    def applied(self, source: str) -> str:
        """The source with this fault in it."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()

    def is_sound(self, source: str) -> bool:
        """Whether the faulty source parses, and as another program."""
        try:
            return ast.dump(ast.parse(self.applied(source))) != ast.dump(ast.parse(source))
        except SyntaxError:
            return False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.kind}\n    - {self.before}\n    + {self.after}"


def faults_in(file: str, source: str) -> list[Fault]:
    """Every fault of this source, in the order of its lines; a few may not be sound."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    data = source.encode()
    found = []
    for kind, start, end, text in sorted(set(finder.edits), key=lambda edit: edit[1:] + edit[:1]):
        first = data.rfind(b"\n", 0, start) + 1
        before = data[first:].split(b"\n", 1)[0].decode().strip()
        changed = data[first:start].decode() + text + data[end:].split(b"\n", 1)[0].decode()
        after = changed.split("\n")[0].strip()
        line = data[:start].count(b"\n") + 1
        found.append(Fault(file, line, kind, start, end, text, before, after))
    return found


class _Finder(ast.NodeVisitor):
    """Collects edits (kind, start, end, text) of byte ranges."""

    def __init__(self, source: str) -> None:
        self.data = source.encode()
        self.starts = [0]
        for line in self.data.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.edits: list[tuple[str, int, int, str]] = []
        self.modules: set[str] = set()  # names that imports bind

    # -- places ----------------------------------------------------------------------------

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.data[start:end].decode()

    def edit(self, kind: str, node: ast.AST, text: str) -> None:
        self.edits.append((kind, *self.span(node), text))

    def operator(self, kind: str, left: ast.AST, right: ast.AST, pattern: str, new: str) -> None:
        """Replace the operator that stands between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        between = self.data[start:end].decode()
        found = None if "#" in between else re.search(pattern, between)
        if found:
            self.edits.append((kind, start + found.start(), start + found.end(), new))

    # -- what is left alone ----------------------------------------------------------------

    def visit_Import(self, node: ast.Import) -> None:
        self.modules |= {(name.asname or name.name).split(".")[0] for name in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.modules |= {name.asname or name.name for name in node.names}

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self.statements(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.statements(node.body)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """f-strings: where their parts stand is not told reliably."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Asserts are for the project's own bugs."""

    # -- statements ------------------------------------------------------------------------

    def statements(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.edit("statement dropped", node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):  # a docstring
            return
        if isinstance(node.value, ast.Call):
            self.edit("statement dropped", node, "pass")
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self.edit("statement dropped", node, "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self.edit("statement dropped", node, "pass")

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.targets[0], ast.Subscript):
            self.edit("statement dropped", node, "pass")
        elif isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.edit("statement dropped", node, "pass")
        old, new = ARITHMETIC.get(type(node.op), ("", ""))
        if old:
            pattern = re.escape(old + "=")
            self.operator("arithmetic", node.target, node.value, pattern, new + "=")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        is_truth = isinstance(node.value, ast.Compare | ast.BoolOp)
        if is_truth or (isinstance(node.value, ast.Call) and _name(node.value) in ("any", "all")):
            self.edit("return value", node.value, f"not ({self.text(node.value)})")
        self.generic_visit(node)

    def condition(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare | ast.UnaryOp):  # those have their own fault
            self.edit("condition negated", test, f"not ({self.text(test)})")

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return
        self.condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    # -- expressions -----------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands[:-1], node.ops, operands[1:], strict=True):
            old, new = COMPARE[type(operator)]
            self.operator("comparison", left, right, old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        old, new = ARITHMETIC.get(type(node.op), ("", ""))
        if old and not (isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant)):
            self.operator("arithmetic", node.left, node.right, re.escape(old), new)
        if isinstance(node.op, ast.BitAnd | ast.BitOr):
            self.edit("operand dropped", node, f"({self.text(node.left)})")
            self.edit("operand dropped", node, f"({self.text(node.right)})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        new = "or" if isinstance(node.op, ast.And) else "and"
        old = "and" if isinstance(node.op, ast.And) else "or"
        for i in range(len(node.values)):
            if i:
                self.operator("boolean", *node.values[i - 1 : i + 1], rf"\b{old}\b", new)
            rest = [f"({self.text(value)})" for j, value in enumerate(node.values) if j != i]
            self.edit("operand dropped", node, f"({f' {old} '.join(rest)})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.Invert | ast.USub):
            self.edit("sign or not dropped", node, f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.edit("constant", node, str(not value))
        elif isinstance(value, int):
            self.edit("constant", node, str(value + 1))
        elif isinstance(value, float):
            self.edit("constant", node, repr(2 * value if value else 1.0))

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None:
                self.edit("slice bound dropped", bound, "")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node)
        root = node.func
        while isinstance(root, ast.Attribute):
            root = root.value
        of_module = isinstance(root, ast.Name) and root.id in self.modules
        of_value = isinstance(node.func, ast.Attribute) and not of_module
        if of_value and len(node.args) + len(node.keywords) < 2:  # x.any(), x.astype(int)
            self.edit("call dropped", node, self.text(node.func.value))
        elif len(node.args) == 1 and not (node.keywords or isinstance(node.args[0], ast.Starred)):
            self.edit("call dropped", node, f"({self.text(node.args[0])})")
        if name in SWAPPED:
            end = self.span(node.func)[1]
            self.edits.append(("call swapped", end - len(name), end, SWAPPED[name]))
        node.keywords = [each for each in node.keywords if each.arg != "strict"]  # as an assert
        if name == "reshape":  # numpy takes -2 for -1
            node.args = [each for each in node.args if not isinstance(each, ast.UnaryOp)]
        for keyword in node.keywords:
            if keyword.arg is not None:
                self.keyword_dropped(node, keyword)
        self.generic_visit(node)

    def keyword_dropped(self, call: ast.Call, keyword: ast.keyword) -> None:
        start, end = self.span(keyword)
        comma = re.match(rb"\s*,", self.data[end : self.span(call)[1]])
        self.edits.append(("keyword dropped", start, end + (comma.end() if comma else 0), ""))

    visit_AsyncFunctionDef = visit_FunctionDef


def _name(call: ast.Call) -> str:
    """The last part of what is called: "any" of `any(x)` and of `bits.any()`."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""
