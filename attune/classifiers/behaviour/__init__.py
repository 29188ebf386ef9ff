"""Behaviours of a counsellor, and adherence to motivational interviewing."""
