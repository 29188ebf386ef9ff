"""Classifiers that read replies: EPITOME, stages of DBT, behaviours of a counsellor."""
