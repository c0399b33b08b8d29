"""Two results folders beside each other: paired differences and their page."""
