"""Preference pairs: one readable file for each rule."""
