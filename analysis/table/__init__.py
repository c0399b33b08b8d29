"""Rows of any origin become configurations, seeds averaged, and the noise between seeds."""
