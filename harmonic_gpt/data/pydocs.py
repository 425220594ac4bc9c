"""The embedded corpus: English prose that every Python carries. No download, license settled."""

import ast
import sysconfig
from functools import cache
from pathlib import Path


@cache  # parsing takes seconds, and preparing reads a source twice
def pydocs() -> tuple[str, ...]:
    """The language reference's topics and the standard library's docstrings.

    Modules are parsed, not imported. A module's docstrings, in source order, make one document. Tests are left out:
    their docstrings are mostly labels.
    """
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(path.relative_to(library).parts):
            continue
        try:
            text = docstrings(path.read_bytes())
        except (SyntaxError, ValueError):  # lib2to3 carries files that are wrong on purpose
            continue
        if text:
            texts.append(text)
    return tuple(texts)


def docstrings(source: bytes) -> str:
    """Docstrings of a module's source in their order, a blank line between.

    Raises SyntaxError or ValueError for other files.
    """
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(doc for node in nodes if (doc := ast.get_docstring(node)))
