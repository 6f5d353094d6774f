"""Docstrings begin with a verb or a noun, as those of PyTorch do."""

import ast

import pytest

from tests.helpers import ROOT

# Prepositions, pronouns and conjunctions, with which clauses begin that name nothing.
WRONG = set(
    "about above after against as at because before below beside between but by does during "
    "everything for from he how if in inside into is it its like nothing of on one ones our "
    "out over per she since so some than that their there these they this those though through to "
    "under until up we what whatever when where whether which while who whose why with within "
    "without you your".split()
)
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_docstrings_begin_with_a_verb_or_a_noun(path) -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [
        text
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, documented) and (text := ast.get_docstring(node))
    ]
    wrong = [text for text in texts if text.split(maxsplit=1)[0].strip(",:;.").lower() in WRONG]
    assert not wrong
