"""The chat template of a reranker, from which sentence-transformers makes the conversation of a pair.

It is not run: its words are compared with those of the model card.
"""

from __future__ import annotations

import re

from . import model_cards

ROLE = re.compile(r"""["'](query|document)["']""")
STATEMENT = re.compile(r"\{[%#].*?[%#]\}\n?", re.DOTALL)
EXPRESSION = re.compile(r"\{\{.*?\}\}", re.DOTALL)
DEFAULT = re.compile(r"""default\(\s*(["'])(.*?)\1\s*(?:,[^)]*)?\)""")
INSTRUCTION_LINE = re.compile(r"<Instruct>: (.*)\n<Query>")


def is_for_pairs(template: str | None) -> bool:
    """Return whether the template names the roles "query" and "document".

    Templates of chat models know "system", "user" and "assistant".
    """
    return template is not None and {"query", "document"} <= set(ROLE.findall(template))


def words(template: str) -> str:
    """Return the template's text, with {} for each expression."""
    return EXPRESSION.sub("{}", STATEMENT.sub("", template))


def is_the_cards(template: str) -> bool:
    """Return whether the template's words are the model card's.

    Jinja drops the last newline, so there may be one more or less.
    """
    body = model_cards.reranker_body("{}", "{}").replace(model_cards.RERANKER_INSTRUCTION, "{}")
    expected = model_cards.RERANKER_SYSTEM + body + model_cards.RERANKER_ANSWER
    found = INSTRUCTION_LINE.sub("<Instruct>: {}\n<Query>", words(template))
    return found.strip("\n") == expected.strip("\n")


def instruction_of(template: str) -> str | None:
    """Return the instruction in the template: its text, or the default of an expression."""
    found = INSTRUCTION_LINE.search(words(template))
    if found and found[1] != "{}":
        return found[1]
    default = DEFAULT.search(template)
    return default[2] if default else None
