"""What Embedder and Reranker have in common: settings, pickling, names of sentence-transformers."""
