"""Colors: the chart of trade colors, their numbers, and the math that compares them."""
