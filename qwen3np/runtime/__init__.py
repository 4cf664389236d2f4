"""How the engine is run: weights, batches, threads."""
