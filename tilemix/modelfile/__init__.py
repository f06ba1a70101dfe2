"""What a model file is: kind, format, base model, hashes and what was written down about it.

Nothing here imports torch. Only a file's header is read, unless a hash is missing or asked for.
"""

from tilemix.modelfile.header import Header, TensorInfo, read_header
from tilemix.modelfile.inspection import ModelFile, read

__all__ = ["Header", "ModelFile", "TensorInfo", "read", "read_header"]
