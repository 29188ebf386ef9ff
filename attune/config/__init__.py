"""`params.yaml`: schema, loading, checks. Stages depend on the params that they read, not on this code."""
