"""What the model cards say of the published models: sizes, prompts, the reranker's template; no values."""

from __future__ import annotations

from typing import NamedTuple

CARD_MODEL = "Qwen/Qwen3-Embedding-0.6B"
# (hidden_size, intermediate_size, num_hidden_layers, vocab_size, max_position_embeddings) of each published
# config.json. The last two tell embedding models, rerankers and the chat models (151936 rows) apart.
SIZES = {
    (1024, 3072, 28, 151669, 32768): CARD_MODEL,
    (2560, 9728, 36, 151665, 40960): "Qwen/Qwen3-Embedding-4B",
    (4096, 12288, 36, 151665, 40960): "Qwen/Qwen3-Embedding-8B",
    (1024, 3072, 28, 151669, 40960): "Qwen/Qwen3-Reranker-0.6B",
    (2560, 9728, 36, 151669, 40960): "Qwen/Qwen3-Reranker-4B",
    (4096, 12288, 36, 151669, 40960): "Qwen/Qwen3-Reranker-8B",
}
EMBEDDERS = {name for name in SIZES.values() if "Embedding" in name}
RERANKERS = set(SIZES.values()) - EMBEDDERS

QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
# The embedding models' config_sentence_transformers.json.
PROMPTS = {"query": QUERY_PROMPT, "document": ""}


class Card(NamedTuple):
    """How an embedding model is asked: its prompt for queries, by name; what ends every text."""

    prompt_name: str
    query_prompt: str
    end: str | None  # None where no source says


QWEN = Card("query", QUERY_PROMPT, "<|endoftext|>")
# Models that others made from Qwen3 or Qwen3-Embedding; docs/family.md names the sources. A space follows the
# colon of some prompts: "Query: What" has other ids than "Query:What".
F2LLM_PROMPT = "Instruct: Given a question, retrieve passages that can help answer the question.\nQuery: "
FAMILY = {
    "microsoft/harrier-oss-v1-0.6b": Card("web_search_query", QUERY_PROMPT + " ", None),
    **{
        f"codefuse-ai/F2LLM-v2-{size}": Card("query", F2LLM_PROMPT, "<|im_end|>")
        for size in ("80M", "160M", "330M", "0.6B", "1.7B", "4B", "8B", "14B")
    },
    **{
        f"AQ-MedAI/Diver-Retriever-{size}": Card("query", QUERY_PROMPT, None)
        for size in ("0.6B", "1.7B", "4B", "4B-1020")
    },
}

# What a reranker reads: model card of Qwen3-Reranker.
RERANKER_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
RERANKER_SYSTEM = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
RERANKER_ANSWER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def reranker_body(query: str, document: str) -> str:
    """Return a pair's part of the conversation, with the default instruction."""
    return f"<Instruct>: {RERANKER_INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
