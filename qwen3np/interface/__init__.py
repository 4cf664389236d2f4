"""What Embedder and Reranker have in common: texts, settings, sentence-transformers' names."""
