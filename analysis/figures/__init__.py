"""Figures: they draw what findings computed, on settings of their own."""
