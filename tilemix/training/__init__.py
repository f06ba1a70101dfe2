"""Training: the procedural photographs and the miniature's stages. Nothing here runs in a prediction."""
