"""How the miniature, the embedded model, is built and trained. Not part of the product or its image."""
