"""Catalogues: every mix of a palette, and a picture of each, on one machine or on a Ray cluster."""

LOCAL = "local"  # in place of a cluster's address: one of this machine that ends with the process
