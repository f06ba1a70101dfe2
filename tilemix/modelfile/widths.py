"""The widths that tell a base model: the one table that the loader, `inspect` and `weights add` read.

Source: the released models' configurations.
"""

# The width of the text that a model's cross-attention reads -> base model.
CONTEXT_WIDTHS = {768: "SD 1", 1024: "SD 2", 1280: "SDXL refiner", 2048: "SDXL"}
# The width of a text encoder, and so of its token embeddings -> base model. SDXL's first one is SD 1's.
TEXT_WIDTHS = {768: "SD 1", 1024: "SD 2", 1280: "SDXL"}
SDXL_TEXT_WIDTHS = (768, 1280)
FLUX_WIDTH = (
    3072  # of the transformer; SD 3, whose double blocks have the same names in diffusers, is narrower
)
