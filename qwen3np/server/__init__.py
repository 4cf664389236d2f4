"""The HTTP server: the routes of text-embeddings-inference, OpenAI, Cohere and Ollama on one queue.

A request passes guard.py (key, size, number), a route in routes/, served.py (text to ids), scheduler.py (the
queue, and the steps that are computed), and comes back through served.py (states to vectors or scores).
"""
