"""Pictures: pixels to files and back, the record inside them, the shares measured in them."""
