"""Catalogues: every mix of a palette, and a picture of each, on one machine or on a Ray cluster."""
