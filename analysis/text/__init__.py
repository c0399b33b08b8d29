"""Measures of the generated texts."""
