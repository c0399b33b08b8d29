"""Laws, estimators and intervals."""
