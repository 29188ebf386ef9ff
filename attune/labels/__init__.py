"""Tables from the acts of a corpus to the labels that classifiers and rules use."""
