"""The bodies of requests, by family of clients; unknown fields are ignored, for clients send many.

Answers are described for the OpenAPI page alone: answers.py writes them from arrays.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from .failures import EMPTY, INVALID, VALIDATION, Failure
from .served import Truncation

TEXT_SCHEMA = {"type": "string"}
IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


def texts_or_ids_of(value: Any) -> list[str | list[int]]:
    """Return a list of texts, or of lists of token ids, for one or several of them."""
    if isinstance(value, str):
        return [value]
    if _is_ids(value):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"must be a text, a list of texts or token ids, found {_found(value)}")
    for i, one in enumerate(value):
        if isinstance(one, list) and not _is_ids(one):
            other = "of other things" if one else "without any"
            raise ValueError(f"must hold texts or lists of token ids, found a list {other} at [{i}]")
        if not isinstance(one, (str, list)):
            raise ValueError(f"must hold texts or lists of token ids, found {_found(one)} at [{i}]")
    return value


def texts_of(value: Any) -> list[str]:
    """Return a list of texts for one or several of them."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"must be a text or a list of texts, found {_found(value)}")
    for i, one in enumerate(value):
        if not isinstance(one, str):
            raise ValueError(f"must hold texts, found {_found(one)} at [{i}]")
    return value


def documents_of(value: Any) -> list[str]:
    """Return the texts of documents: a list of texts, or of {"text": text}, as Cohere takes."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list of texts, found {_found(value)}")
    return texts_of([one.get("text") if isinstance(one, dict) else one for one in value])


def id_lists_of(value: Any) -> list[list[int]]:
    """Return lists of token ids for one or several of them."""
    value = [value] if _is_ids(value) else value
    if not isinstance(value, list):
        raise ValueError(f"must be a list of token ids, or of such lists, found {_found(value)}")
    for i, one in enumerate(value):
        if not isinstance(one, list) or not all(type(j) is int for j in one):
            raise ValueError(f"must hold lists of token ids, found {_found(one)} at [{i}]")
    return value


def conversations_of(value: Any) -> list[list[dict[str, Any]]] | None:
    """Return a list of conversations, each a list of messages, for one or several of them."""
    if value is None:
        return None
    several = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for messages in several:
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError("must be a list of messages, or a list of such lists")
    return several


def _found(value: Any) -> str:
    """Name a JSON value's type; never what it holds."""
    names = {bool: "a truth value", int: "a number", float: "a number", dict: "an object", list: "a list"}
    return "null" if value is None else names.get(type(value), "a text")


def _schema(*kinds: dict[str, Any], example: Any) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [*kinds], "examples": [example]} if len(kinds) > 1 else kinds[0])


LIST_OF_TEXTS: dict[str, Any] = {"type": "array", "items": TEXT_SCHEMA, "minItems": 1}
Texts = Annotated[
    Any,
    AfterValidator(texts_of),
    _schema(TEXT_SCHEMA, LIST_OF_TEXTS, example="What is the capital of China?"),
]
TextsOrIds = Annotated[
    Any,
    AfterValidator(texts_or_ids_of),
    _schema(
        TEXT_SCHEMA,
        IDS_SCHEMA,
        {"type": "array", "items": {"anyOf": [TEXT_SCHEMA, IDS_SCHEMA]}, "minItems": 1},
        example=["What is the capital of China?", "Explain gravity"],
    ),
]
Documents = Annotated[
    Any,
    AfterValidator(documents_of),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    TEXT_SCHEMA,
                    {"type": "object", "properties": {"text": TEXT_SCHEMA}, "required": ["text"]},
                ]
            },
            "examples": [["The capital of China is Beijing.", "Gravity is a force."]],
        }
    ),
]
MESSAGES_SCHEMA = {"type": "array", "items": {"type": "object"}, "minItems": 1}
Conversations = Annotated[
    Any,
    AfterValidator(conversations_of),
    WithJsonSchema({"anyOf": [MESSAGES_SCHEMA, {"type": "array", "items": MESSAGES_SCHEMA, "minItems": 1}]}),
]
IdLists = Annotated[
    Any,
    AfterValidator(id_lists_of),
    _schema(IDS_SCHEMA, {"type": "array", "items": IDS_SCHEMA}, example=[9707]),
]
Direction = Annotated[
    Literal["left", "right"] | None,
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    WithJsonSchema({"enum": ["left", "right", "Left", "Right", None]}),
]


def _no_truth(value: Any) -> Any:
    """Refuse true for a number: pydantic takes it for 1, and a text would be cut to one token."""
    if isinstance(value, bool):
        raise ValueError("must be an integer, found a truth value")
    return value


Integer = Annotated[int, BeforeValidator(_no_truth)]


class Body(BaseModel):
    """What every body may hold."""

    model_config = ConfigDict(hide_input_in_errors=True)

    model: str | None = Field(None, description="which model; needed where several of a kind are served")


class Truncated(Body):
    """A body whose texts may be too long."""

    truncate: bool | None = Field(
        None,
        description="cut texts that are too long; otherwise, unless the server cuts always, it is an error",
    )
    truncation_direction: Direction = Field(
        None,
        description="the side that is cut; or truncation_side, as vLLM has it",
        validation_alias=AliasChoices("truncation_direction", "truncation_side"),
    )
    truncate_prompt_tokens: Integer | None = Field(
        None, ge=-1, description="cut texts to so many tokens; -1: to as many as the model takes"
    )

    def truncation(self, auto: bool) -> Truncation:
        """Say what becomes of texts that are too long; `auto` is the server's --auto-truncate."""
        most = self.truncate_prompt_tokens
        if most == 0:
            raise Failure(
                VALIDATION, "truncate_prompt_tokens = 0 leaves nothing of a text", "truncate_prompt_tokens"
            )
        truncate = auto if self.truncate is None else self.truncate
        if most == -1:
            truncate, most = True, None
        return Truncation(truncate, self.truncation_direction, most)


class Prompted(Truncated):
    """A body whose texts get a prompt."""

    prompt_name: str | None = Field(
        None, description="a prompt of the model: query for what you search with", examples=["query"]
    )
    instruction: str | None = Field(
        None, description='a task in words; it makes the prompt "Instruct: {instruction}\\nQuery:"'
    )


class EmbedRequest(Prompted):
    """Texts to embed, as text-embeddings-inference takes them."""

    inputs: TextsOrIds
    normalize: bool = Field(True, description="unit vectors; false: as they were pooled")
    dimensions: Integer | None = Field(None, description="how many leading dimensions to keep (32 and more)")


class EmbedAllRequest(Prompted):
    """Texts, whose every token's state is asked for."""

    inputs: TextsOrIds


class Sentences(BaseModel):
    """A sentence, and what it is compared with."""

    source_sentence: str
    sentences: Annotated[Any, AfterValidator(documents_of), WithJsonSchema(LIST_OF_TEXTS)]


class SimilarityParameters(Prompted):
    """How the sentences are embedded."""


class SimilarityRequest(Prompted):
    """A sentence to compare with others."""

    inputs: Sentences
    parameters: SimilarityParameters | None = None


class TokenizeRequest(Body):
    """Texts to tokenise."""

    inputs: Texts
    add_special_tokens: bool = Field(True, description="with the tokens that the model adds")
    prompt_name: str | None = Field(None, description="put this prompt of the model before each text")
    instruction: str | None = Field(None, description="put the prompt of this instruction before each text")


class DecodeRequest(Body):
    """Token ids to turn into text."""

    ids: IdLists
    skip_special_tokens: bool = True


class EmbeddingsRequest(Prompted):
    """Texts to embed, as OpenAI takes them; `messages` in place of `input`, as vLLM does."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["input"]}, {"required": ["messages"]}]}
    )

    input: TextsOrIds = None
    messages: Conversations = Field(None, description="one text, as the parts of messages; or several such")
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Integer | None = Field(None, description="how many leading dimensions to keep (32 and more)")
    user: Any = None

    def texts(self, accept_token_ids: bool) -> list[str | list[int]]:
        """Return the texts; raise Failure for none, and for token ids unless they are asked for."""
        if (self.input is None) == (self.messages is None):
            raise Failure(VALIDATION, "give input: a text, or a list of texts", "input")
        if self.messages is not None:
            return [_text_of(messages) for messages in self.messages]
        found: list[str | list[int]] = self.input
        if not accept_token_ids and any(not isinstance(text, str) for text in found):
            raise Failure(
                INVALID,
                "input holds token ids, and clients that send them here use another model's tokenizer, which "
                "gives wrong vectors without an error: send texts (LangChain's OpenAIEmbeddings: "
                "check_embedding_ctx_length=False). If they are this model's ids, send them to /embed, or "
                "start the server with --accept-token-ids",
                "input",
            )
        return found


def _text_of(messages: list[dict[str, Any]]) -> str:
    """Join the text parts of messages; raise Failure for other parts."""
    parts: list[str] = []
    for i, message in enumerate(messages):
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            if not isinstance(text, str):
                raise Failure(
                    VALIDATION, f"messages[{i}].content must be a text, or parts of type text", "messages"
                )
            parts.append(text)
    if not parts:
        raise Failure(EMPTY, "messages is empty: send at least one text", "messages")
    return "\n".join(parts)


class RerankRequest(Truncated):
    """Documents to rank: `texts`, as text-embeddings-inference takes them, or `documents`, as Cohere does."""

    query: str = Field(examples=["What is the capital of China?"])
    texts: Annotated[Any, AfterValidator(documents_of), WithJsonSchema(LIST_OF_TEXTS)] = None
    documents: Documents = None
    instruction: str | None = Field(None, description="what makes a document a good one")
    raw_scores: bool = Field(False, description='logit("yes") - logit("no"), not the probability of "yes"')
    return_text: bool = Field(False, description="with `texts`: return them")
    top_n: Integer | None = Field(None, ge=1, description="with `documents`: return so many, best first")
    return_documents: bool = Field(False, description="with `documents`: return them")


class OllamaRequest(Prompted):
    """Texts to embed, as Ollama takes them: truncated, unless the body says otherwise."""

    input: Texts
    truncate: bool | None = True
    dimensions: Integer | None = None


class Token(BaseModel):
    """A token of a text; one that the tokenizer added has no place in it."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Rank(BaseModel):
    """A document's place."""

    index: int
    score: float
    text: str | None = None


class Embedding(BaseModel):
    """A vector: numbers, or in base64 little-endian float32."""

    object: Literal["embedding"]
    embedding: list[float] | str
    index: int


class Usage(BaseModel):
    """Tokens that were computed."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """The vectors of a request, in its order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class RankedDocument(BaseModel):
    """A document's place, as Cohere and Jina write it."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class Ranking(BaseModel):
    """Documents, best first."""

    id: str
    model: str
    usage: Usage
    results: list[RankedDocument]


class OllamaEmbeddings(BaseModel):
    """The vectors of a request; durations in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class ErrorOf(BaseModel):
    """What is wrong, as text-embeddings-inference says it."""

    error: str
    error_type: str


class OpenAIErrorOf(BaseModel):
    """What is wrong, as OpenAI says it."""

    error: dict[str, Any]
    message: str
    code: int
    type: str
    detail: str


class OllamaErrorOf(BaseModel):
    """What is wrong, as Ollama says it."""

    error: str
