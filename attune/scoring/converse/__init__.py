"""Conversations with scripted people: how they feel by rules, and what a variant says over several turns."""
