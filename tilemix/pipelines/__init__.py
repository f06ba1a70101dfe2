"""Pipelines: everything between a prompt and latents that touches diffusers."""
