"""Clients of other projects, as their users set them up for the server: each a function of its URL.

Every function imports its package itself, for most tests do without the extra `clients`. Names of models are
whatever a user may have left there: with one model of a kind, any name is that one's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

NO_KEY = "none"  # most clients insist on one
PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"

Ranked = list[tuple[int, float]]  # documents' numbers and scores, best first


def openai(url: str, key: str = NO_KEY) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def openai_vectors(url: str, texts: Sequence[str], key: str = NO_KEY, **options: Any) -> Any:
    answer = openai(url, key).embeddings.create(model="qwen3", input=texts, **options)
    assert [entry.index for entry in answer.data] == list(range(len(texts)))
    return [entry.embedding for entry in answer.data]


def huggingface_hub(url: str, key: str | None = None) -> Any:
    from huggingface_hub import InferenceClient

    return InferenceClient(model=url, token=key)


def ollama(url: str, key: str = NO_KEY) -> Any:
    from ollama import Client

    return Client(host=url, headers={"Authorization": f"Bearer {key}"})


def ollama_vectors(url: str, texts: Sequence[str], key: str = NO_KEY, **options: Any) -> Any:
    return ollama(url, key).embed("qwen3", texts, **options).embeddings


def cohere(url: str) -> Any:
    from cohere import ClientV2

    return ClientV2(NO_KEY, base_url=url, max_retries=0)


def langchain(url: str, key: str = NO_KEY, **options: Any) -> Any:
    from langchain_openai import OpenAIEmbeddings

    return OpenAIEmbeddings(model="qwen3", base_url=f"{url}/v1", api_key=key, max_retries=0, **options)


def langchain_texts(url: str, key: str = NO_KEY) -> Any:
    """With the option that makes LangChain send texts, not another tokenizer's ids."""
    return langchain(url, key, check_embedding_ctx_length=False, chunk_size=2)


def llama_index_openai(url: str, key: str = NO_KEY, **body: Any) -> Any:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    return OpenAILikeEmbedding(
        "qwen3", api_base=f"{url}/v1", api_key=key, max_retries=0, additional_kwargs={"extra_body": body}
    )


def llama_index_tei(url: str) -> Any:
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    return TextEmbeddingsInference("qwen3", base_url=url)


def haystack_key(key: str) -> Any:
    from haystack.utils import Secret

    return Secret.from_token(key)


def haystack_documents(texts: Sequence[str]) -> Any:
    from haystack import Document

    return [Document(content=text) for text in texts]


def haystack_openai(url: str, key: str = NO_KEY, prefix: str = "") -> Any:
    from haystack.components.embedders import OpenAITextEmbedder

    return OpenAITextEmbedder(
        haystack_key(key), "qwen3", api_base_url=f"{url}/v1", prefix=prefix, max_retries=0
    )


def haystack_openai_documents(url: str, texts: Sequence[str]) -> Any:
    from haystack.components.embedders import OpenAIDocumentEmbedder

    embedder = OpenAIDocumentEmbedder(
        haystack_key(NO_KEY), "qwen3", api_base_url=f"{url}/v1", batch_size=2, max_retries=0
    )
    return embedder.run(haystack_documents(texts))


# Haystack asks text-embeddings-inference for vectors as they were pooled, unless normalize is set.


def haystack_tei(url: str, prefix: str = "") -> Any:
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPITextEmbedder

    return HuggingFaceAPITextEmbedder(
        "text_embeddings_inference", {"url": url}, token=None, prefix=prefix, normalize=True
    )


def haystack_tei_documents(url: str, texts: Sequence[str]) -> Any:
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPIDocumentEmbedder

    embedder = HuggingFaceAPIDocumentEmbedder(
        "text_embeddings_inference", {"url": url}, token=None, normalize=True
    )
    return embedder.run(haystack_documents(texts))


def haystack_vllm(url: str, key: str = NO_KEY, **body: Any) -> Any:
    from haystack_integrations.components.embedders.vllm import VLLMTextEmbedder

    return VLLMTextEmbedder(
        model="qwen3", api_key=haystack_key(key), api_base_url=f"{url}/v1", extra_parameters=body
    )


def cohere_ranking(url: str, query: str, documents: Sequence[str], **options: Any) -> Ranked:
    found = cohere(url).rerank(model="qwen3", query=query, documents=documents, **options)
    return [(result.index, result.relevance_score) for result in found.results]


def cohere_v1_ranking(url: str, query: str, documents: Sequence[str]) -> Ranked:
    from cohere import Client

    found = Client(NO_KEY, base_url=url).rerank(query=query, documents=documents, return_documents=True)
    assert [result.document.text for result in found.results] == [documents[r.index] for r in found.results]
    return [(result.index, result.relevance_score) for result in found.results]


def llama_index_ranking(postprocessor: Any, query: str, documents: Sequence[str]) -> Ranked:
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in documents]
    found = postprocessor.postprocess_nodes(nodes, query_str=query)
    return [(documents.index(node.text), node.score) for node in found]


def llama_index_tei_ranking(url: str, query: str, documents: Sequence[str]) -> Ranked:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    return llama_index_ranking(TextEmbeddingInference(len(documents), url), query, documents)


def llama_index_jina_ranking(url: str, query: str, documents: Sequence[str]) -> Ranked:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    jina = JinaRerank(len(documents), base_url=f"{url}/v1", api_key=NO_KEY)
    return llama_index_ranking(jina, query, documents)


def haystack_ranking(ranker: Any, query: str, documents: Sequence[str]) -> Ranked:
    found = ranker.run(query, haystack_documents(documents))["documents"]
    return [(documents.index(document.content), document.score) for document in found]


def haystack_tei_ranking(url: str, query: str, documents: Sequence[str]) -> Ranked:
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    return haystack_ranking(HuggingFaceTEIRanker(url=url, token=None), query, documents)


def haystack_vllm_ranking(url: str, query: str, documents: Sequence[str], **body: Any) -> Ranked:
    from haystack_integrations.components.rankers.vllm import VLLMRanker

    ranker = VLLMRanker(model="qwen3", api_key=None, api_base_url=f"{url}/v1", extra_parameters=body)
    return haystack_ranking(ranker, query, documents)


def _embeddings(found: Any) -> list[Any]:
    return [document.embedding for document in found["documents"]]


# Vectors of texts.
TEXTS: dict[str, Callable[[str, Sequence[str]], Any]] = {
    "openai, base64": openai_vectors,
    "openai, float": lambda url, texts: openai_vectors(url, texts, encoding_format="float"),
    "huggingface_hub": lambda url, texts: huggingface_hub(url).feature_extraction(texts),
    "huggingface_hub, a route": lambda url, texts: huggingface_hub(f"{url}/embed").feature_extraction(texts),
    "ollama": ollama_vectors,
    "langchain": lambda url, texts: langchain_texts(url).embed_documents(texts),
    "llama-index, openai": lambda url, texts: llama_index_openai(url).get_text_embedding_batch(texts),
    "llama-index, tei": lambda url, texts: llama_index_tei(url).get_text_embedding_batch(texts),
    "haystack, openai": lambda url, texts: _embeddings(haystack_openai_documents(url, texts)),
    "haystack, tei": lambda url, texts: _embeddings(haystack_tei_documents(url, texts)),
}

# The vector of a query, each in the client's own way to say that it is one: a field of the body, or a prefix.
ASKED = {"prompt_name": "query"}
QUERIES: dict[str, Callable[[str, str], Any]] = {
    "openai": lambda url, query: openai_vectors(url, [query], extra_body=ASKED)[0],
    "huggingface_hub": lambda url, query: huggingface_hub(url).feature_extraction(query, **ASKED)[0],
    "ollama": lambda url, query: ollama_vectors(url, PROMPT + query)[0],
    "langchain": lambda url, query: langchain_texts(url).embed_query(query, extra_body=ASKED),
    "llama-index, openai": lambda url, query: llama_index_openai(url, **ASKED).get_query_embedding(query),
    "llama-index, tei": lambda url, query: llama_index_tei(url).get_query_embedding(PROMPT + query),
    "haystack, openai": lambda url, query: haystack_openai(url, prefix=PROMPT).run(query)["embedding"],
    "haystack, tei": lambda url, query: haystack_tei(url, prefix=PROMPT).run(query)["embedding"],
    "haystack, vllm": lambda url, query: haystack_vllm(url, **ASKED).run(query)["embedding"],
}

# The vector of a text, for a key; and what each raises for a wrong one.
KEYS: dict[str, tuple[Callable[[str, str, str], Any], str]] = {
    "openai": (lambda url, text, key: openai_vectors(url, [text], key)[0], "AuthenticationError"),
    "huggingface_hub": (
        lambda url, text, key: huggingface_hub(url, key).feature_extraction(text)[0],
        "HfHubHTTPError",
    ),
    "ollama": (lambda url, text, key: ollama_vectors(url, text, key)[0], "ResponseError"),
    "langchain": (lambda url, text, key: langchain_texts(url, key).embed_query(text), "AuthenticationError"),
    "llama-index, openai": (
        lambda url, text, key: llama_index_openai(url, key).get_query_embedding(text),
        "AuthenticationError",
    ),
    "haystack, openai": (
        lambda url, text, key: haystack_openai(url, key).run(text)["embedding"],
        "AuthenticationError",
    ),
}

RANKINGS: dict[str, Callable[[str, str, Sequence[str]], Ranked]] = {
    "cohere": cohere_ranking,
    "cohere, v1": cohere_v1_ranking,
    "llama-index, tei": llama_index_tei_ranking,
    "llama-index, jina": llama_index_jina_ranking,
    "haystack, tei": haystack_tei_ranking,
    "haystack, vllm": haystack_vllm_ranking,
}
