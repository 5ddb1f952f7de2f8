"""Annotations: what a teacher wrote, kept raw in a store; reading, selecting, summarizing and exporting it."""
