"""Decisions from records: learning rates and architectures. No Ray."""
