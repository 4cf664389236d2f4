"""What the model cards say of the published models: sizes, prompts, the reranker's template; no values."""

from __future__ import annotations

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
