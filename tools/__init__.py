"""Tools for the maintainers. Not part of the product or its image."""
