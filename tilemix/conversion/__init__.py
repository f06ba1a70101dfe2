"""Pickled model files -> safetensors, without running anything that they hold.

A pickle is a program. torch's weights-only unpickler runs only the part of it that builds tensors and plain containers;
it does so in a process of its own, whose memory and time are limited, so a hostile file costs a line. Nothing here
imports torch but what that process runs.
"""
