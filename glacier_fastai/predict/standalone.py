"""A module as a file that needs nothing of this package: what it imports from here is written into it."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from importlib import import_module
from importlib.util import resolve_name
from types import ModuleType

__all__ = ["standalone"]

Import = (ast.Import, ast.ImportFrom)


def standalone(
    module: ModuleType,  # of this package; its relative imports stand side by side at the top level
) -> str:
    """Return the source of a module with the definitions that it takes from this package in place of the imports.

    With a definition comes, before it, what it is made of, and nothing else: so no formula is written twice.

    >>> from glacier_fastai.core import tiling
    >>> "class DataError(GlacierError, ValueError):" in standalone(tiling)
    True

    Raises:
        ValueError: Two definitions have one name.
    """
    lines, tree = _parsed(module.__name__)
    own = [s for s in tree.body if isinstance(s, ast.ImportFrom) and s.level]
    collected = _Collected({line for s in tree.body if isinstance(s, Import) and s not in own for line in _each(s)})
    for statement in own:
        for alias in statement.names:
            collected.take(_origin(module.__name__, statement), alias.name)
    block = [*sorted(collected.imports), "", "# From glacier_fastai, as it is there", "", "", *collected.parts]
    first, last = own[0].lineno, own[-1].end_lineno
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join([*lines[: first - 1], *block, "", "", *lines[last:], ""]))


class _Collected:
    """Definitions taken from modules, and the imports of other packages that they need."""

    def __init__(self, known: set[str]):
        self.known, self.imports, self.parts = known, set[str](), list[str]()
        self.origin: dict[str, str] = {}  # of each name taken

    def take(self, module: str, name: str) -> None:
        """Take what a module calls by a name, if anything, after all that it needs."""
        if self.origin.get(name) == module:
            return
        lines, tree = _parsed(module)
        for statement in tree.body:
            if isinstance(statement, Import):
                self._follow(module, statement, name)
            elif name in (names := _defined(statement)):
                if other := next((n for n in names if n in self.origin), None):
                    raise ValueError(f"{other} stands in {self.origin[other]} and in {module}: rename one of them")
                self.origin |= dict.fromkeys(names, module)
                for node in ast.walk(statement):
                    if isinstance(node, ast.Name):
                        self.take(module, node.id)
                space = ["", ""] if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) else []
                self.parts += [*space, *lines[statement.lineno - 1 : statement.end_lineno], *space]

    def _follow(self, module: str, statement: ast.Import | ast.ImportFrom, name: str) -> None:
        if name not in (alias.asname or alias.name for alias in statement.names):
            return
        if isinstance(statement, ast.ImportFrom) and statement.level:
            self.take(_origin(module, statement), name)
        else:
            self.imports |= {line for line in _each(statement) if line.split()[-1] == name} - self.known


@cache
def _parsed(module: str) -> tuple[list[str], ast.Module]:
    text = inspect.getsource(import_module(module))
    return text.splitlines(), ast.parse(text)


def _origin(module: str, statement: ast.ImportFrom) -> str:
    return resolve_name("." * statement.level + (statement.module or ""), module.rpartition(".")[0])


def _each(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """Return an import as one line for each name."""
    where = f"from {statement.module} " if isinstance(statement, ast.ImportFrom) else ""
    return [f"{where}import {ast.unparse(alias)}" for alias in statement.names]


def _defined(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return set()
