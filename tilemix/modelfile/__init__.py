"""What a model file is: kind, format, base model, hashes and what was written down about it.

Nothing here imports torch. Only a file's header is read, unless a hash is missing or asked for.
"""
