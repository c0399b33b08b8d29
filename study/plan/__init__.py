"""What is missing, what it costs, what is worth it."""
