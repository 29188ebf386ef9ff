"""The stages of the pipeline: the scripts that `dvc.yaml` runs, one for each stage."""
