"""The studio: predictions asked for over HTTP, their webhooks, and a gallery of the pictures. No torch."""
