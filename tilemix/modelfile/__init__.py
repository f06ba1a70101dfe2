"""What a model file is, read from its header. Nothing here imports torch."""

from tilemix.modelfile.header import Header, TensorInfo, read_header

__all__ = ["Header", "TensorInfo", "read_header"]
