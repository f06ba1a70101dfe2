"""Tuning: what `tilemix train` does."""
