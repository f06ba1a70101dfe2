"""The stages of the miniature's training."""
