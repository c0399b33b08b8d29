"""A study of small transformers: the command, what it trains, its tables; the rooms below do the work."""
