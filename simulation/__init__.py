"""Histories of a job under faults: `python -m simulation` runs them by seed, and replays one that broke a promise."""
