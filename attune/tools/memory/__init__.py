"""Memory estimate of a configuration."""
