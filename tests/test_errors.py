"""Every message is data: it has a code, its line names the values that its raise gives, in every language."""

import ast
import inspect
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from tilemix import errors
from tilemix.errors import Message, MixError, TilemixError, load_messages
from tilemix.studio.web.messages import load_texts
from tilemix.studio.web.words import LANGUAGES

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("tilemix", "miniature", "tools", "predict.py")
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
ERRORS = {
    name
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, TilemixError | Message)
}
NOT_VALUES = {"field", "status", "is_final", "pause_seconds"}  # arguments of an error that no line names


def placeholders(line: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(line) if name is not None}


SOURCES = [
    (path, ast.parse(path.read_text()))
    for place in PLACES
    for path in (sorted((ROOT / place).rglob("*.py")) if (ROOT / place).is_dir() else [ROOT / place])
    if path != Path(errors.__file__)
]
OWN = {  # errors of one room alone
    node.name
    for _, tree in SOURCES
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef) and any(getattr(base, "id", None) in ERRORS for base in node.bases)
}
RAISED = ERRORS | OWN


def find_calls(node: ast.AST, function: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Each call below a node that makes an error or a message, and the innermost function around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and getattr(child.func, "id", None) in RAISED and child.args:
            yield child, function
        yield from find_calls(
            child, child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        )


CALLS = {
    f"{path.relative_to(ROOT)}:{call.lineno}": (call, function)
    for path, tree in SOURCES
    for call, function in find_calls(tree, tree)
}


def codes_of(node: ast.expr, function: ast.AST) -> list[str]:
    """The codes that an argument may be: a literal, one of two, or what the function assigns to its name."""
    if isinstance(node, ast.IfExp):
        return codes_of(node.body, function) + codes_of(node.orelse, function)
    if isinstance(node, ast.Name):
        assigned = [
            one.value
            for one in ast.walk(function)
            if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == node.id
        ]
        return [code for value in assigned for code in codes_of(value, function)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def values_of(call: ast.Call) -> set[str] | None:
    """The names of the values that a call gives; None where they are not written there one by one."""
    if getattr(call.func, "id", None) == "Message":
        given = call.args[1] if len(call.args) > 1 else None
        if not isinstance(given, ast.Dict) or None in given.keys:
            return None
        return {key.value for key in given.keys if isinstance(key, ast.Constant)}
    names = {keyword.arg for keyword in call.keywords}
    return None if None in names else names


@pytest.mark.parametrize(("call", "function"), CALLS.values(), ids=CALLS)
def test_an_error_gives_its_line_exactly_the_values_that_it_names(call, function):
    assert not isinstance(call.args[0], ast.JoinedStr), "a whole line in place of a code"
    for code in codes_of(call.args[0], function):
        assert CODE.fullmatch(code)
        assert code in load_messages()
        given, named = values_of(call), placeholders(load_messages()[code]) - {"field"}
        assert given is None or (named <= given and given - named <= NOT_VALUES)
        if "field" in placeholders(load_messages()[code]):
            assert len(call.args) > 2 or any(keyword.arg in {"field", None} for keyword in call.keywords)


def test_every_code_is_used():
    used = {
        node.value
        for _, tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(load_messages()) - used == set()


def test_the_codes_are_in_order_and_kebab_case():
    files = [errors.MESSAGES_FILE, *(ROOT / "tilemix/studio/web/pages/messages").glob("*.json")]
    assert len(files) == 1 + len(LANGUAGES)
    for file in files:
        codes = list(json.loads(file.read_text()))
        assert codes == sorted(codes)
        assert all(map(CODE.fullmatch, codes))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_has_words_in_every_language_with_the_same_values(language):
    """English has the library's line where the page has no other; the other languages say what the page says."""
    lines = load_messages()
    english = dict(lines) | load_texts("en")
    texts = english if language == "en" else load_texts(language)
    assert texts.keys() == lines.keys()
    for code, text in texts.items():
        assert placeholders(text) - {"field"} == placeholders(english[code]) - {"field"}, code
        assert placeholders(text) <= placeholders(lines[code]) | {"field"}, code
        if language != "en":  # what is filled in is text already
            assert all(not spec and not conversion for _, _, spec, conversion in Formatter().parse(text)), (
                code
            )


def test_the_tree_in_the_docstring_is_the_classes():
    listed = re.findall(r"^( +)\* (\w+)", errors.__doc__, re.MULTILINE)
    listed = [("", "TilemixError"), *listed]
    parents: list[str] = []
    for indent, name in listed:
        depth = len(indent) // 4
        kind = getattr(errors, name)
        assert kind.__base__.__name__ == (parents[depth - 1] if depth else "Exception"), name
        parents[depth:] = [name]
    assert {name for _, name in listed} == ERRORS - {"Message"}


def test_a_line_lists_names_and_formats_numbers():
    error = MixError("mix-unknown-color", typed="rost", position=5, words="rosa, rot")
    assert str(error) == "unknown color 'rost' at character 5; did you mean 'rosa' or 'rot'?"
    assert (error.code, error.field, error.position) == ("mix-unknown-color", "prompt", 5)
    assert dict(error.values) == {"typed": "rost", "position": 5, "words": "rosa, rot"}
    total = MixError("mix-total", total=70.0, mix="50% red, 20% black")
    assert str(total) == "shares total 70%, expected 100%: read 50% red, 20% black"


def test_a_value_is_never_read_as_a_format():
    error = MixError("mix-no-color", typed="{0.__class__}", position=1)
    assert str(error) == "share '{0.__class__}' at character 1 has no color"


def test_an_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(MixError("mix-two-rests")))  # noqa: S301 (our own bytes)
    assert (type(error), error.code, str(error)) == (
        MixError,
        "mix-two-rests",
        "two shares say 'rest', expected one",
    )
