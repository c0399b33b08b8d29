"""A text becomes tokens and batches."""
