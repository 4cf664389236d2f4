"""A model's folder -> config, tensors, token ids."""
