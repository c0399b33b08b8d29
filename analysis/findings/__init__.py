"""One file for each question: numbers and verdicts, no sentence."""
