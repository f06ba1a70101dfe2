"""Pictures of rubber floor tiles from color mixes: SDXL, packaged with Cog."""

# Here, and not in the package's metadata: the image has the files but no installed package.
__version__ = "0.1.0"
