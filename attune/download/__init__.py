"""Sources, hashes, archives and licences of the corpora."""
