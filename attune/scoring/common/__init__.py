"""Reading replies for scoring."""
