"""Pictures of rubber floor tiles from color mixes: SDXL, packaged with Cog."""
