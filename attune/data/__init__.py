"""What passes between stages: dialogues, examples, preference pairs, and draws keyed by an id."""
