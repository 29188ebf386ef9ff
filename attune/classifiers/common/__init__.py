"""What all classifiers share: the encoder's forward pass, training of turn classifiers, storage."""
