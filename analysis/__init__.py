"""What a study's tables say: estimates with intervals, and the report."""
