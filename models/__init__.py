"""What a model is: counts, network, arithmetic, generation."""
