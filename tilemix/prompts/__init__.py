"""Prompts: what a customer types, checked, read as a color mix and written out for the model."""
