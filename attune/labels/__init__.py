"""Tables that map the acts of a corpus to labels."""
