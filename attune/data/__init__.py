"""The records that stages exchange: dialogues, examples and preference pairs; and random draws keyed by an id."""
