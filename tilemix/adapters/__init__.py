"""LoRAs and learned tokens: files in every published format -> a pipeline's weights and vocabulary.

A file is loaded completely or refused with one line that says why. Needs torch.
"""

from tilemix.adapters.embedding_file import EmbeddingFile, check_fit, read_embedding
from tilemix.adapters.lora_file import LoraFile, read_lora
from tilemix.adapters.merging import BaseWeights, LoraMerger
from tilemix.adapters.names import find_weights, spell_modules
from tilemix.adapters.tokens import TokenInstaller

__all__ = [
    "BaseWeights",
    "EmbeddingFile",
    "LoraFile",
    "LoraMerger",
    "TokenInstaller",
    "check_fit",
    "find_weights",
    "read_embedding",
    "read_lora",
    "spell_modules",
]
