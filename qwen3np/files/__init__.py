"""Whole files: embed them into files (run.py), and search what was written (saved.py)."""
