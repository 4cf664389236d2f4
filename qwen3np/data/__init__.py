"""Data files of the package: the small tokenizer of the demo (made by tests/make_tokenizer.py)."""
