"""The generated pages are those of this tree, and what is public is documented."""

import importlib
import inspect
import re

import pytest

import harmonic_gpt
from tests.test_docs import ROOT

make_reference = importlib.import_module("docs.make_reference")


@pytest.mark.parametrize("name", ["reference/settings.md", "reference/commands.md", "reference/configs.md"])
def test_generated_page_is_up_to_date(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == make_reference.PAGES[name](), "run python docs/make_reference.py"


def test_every_shipped_config_is_on_the_page():
    assert set(make_reference.EXPECTED) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_every_public_name_is_on_the_page_and_documented():
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    listed = dict(reversed(path.rsplit(".", 1)) for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    assert set(harmonic_gpt.__all__) <= set(listed)
    for name, module in listed.items():
        thing = getattr(importlib.import_module(module), name)
        members = [value for key, value in vars(thing).items() if inspect.isfunction(value) and key[0] != "_"]
        assert not [member.__qualname__ for member in [thing, *members] if not inspect.getdoc(member)]


def test_allowed_values_of_a_setting():
    assert (
        make_reference.allowed({"type": "integer", "exclusiveMinimum": 0, "maximum": 2**20}) == "integer > 0 and ≤ 2^20"
    )
    assert make_reference.allowed({"anyOf": [{"type": "number"}, {"const": "sqrt"}, {"type": "null"}]}) == (
        "number or `sqrt` or null"
    )
