"""Seeded tasks on text that every Python installation has: no download, same text everywhere."""
