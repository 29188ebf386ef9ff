"""The sections of `params.yaml`; import them from `attune.config.schema`."""
