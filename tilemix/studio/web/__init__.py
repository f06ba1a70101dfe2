"""The studio's web page."""
