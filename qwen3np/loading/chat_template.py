"""The chat template of a reranker, by which sentence-transformers makes the conversation of a pair. It is not
run: its words are compared with those of the model card."""

from __future__ import annotations

import re

from . import model_cards

ROLE = re.compile(r"""["'](query|document)["']""")
STATEMENT = re.compile(r"\{[%#].*?[%#]\}\n?", re.DOTALL)
EXPRESSION = re.compile(r"\{\{.*?\}\}", re.DOTALL)
DEFAULT = re.compile(r"""default\(\s*(["'])(.*?)\1\s*(?:,[^)]*)?\)""")
INSTRUCTION = re.compile(r"<Instruct>: (.*)\n<Query>")


def is_for_pairs(template: str | None) -> bool:
    """Whether it names the roles "query" and "document"; those of chat models know system, user and "
    "assistant."""
    return template is not None and {"query", "document"} <= set(ROLE.findall(template))


def words(template: str) -> str:
    """The template's text, an expression as {}."""
    return EXPRESSION.sub("{}", STATEMENT.sub("", template))


def is_the_cards(template: str) -> bool:
    """Whether its words are the model card's. Jinja drops the last newline, so there may be one more or "
    "less."""
    body = model_cards.reranker_body("{}", "{}").replace(model_cards.RERANKER_INSTRUCTION, "{}")
    expected = model_cards.RERANKER_SYSTEM + body + model_cards.RERANKER_ANSWER
    found = INSTRUCTION.sub("<Instruct>: {}\n<Query>", words(template))
    return found.strip("\n") == expected.strip("\n")


def instruction_of(template: str) -> str | None:
    """The instruction that stands in the template, as its text or as the default of an expression."""
    found = INSTRUCTION.search(words(template))
    if found and found[1] != "{}":
        return found[1]
    default = DEFAULT.search(template)
    return default[2] if default else None
