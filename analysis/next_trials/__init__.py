"""Which trials would sharpen an answer most for their cost."""
