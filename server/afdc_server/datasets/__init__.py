"""Data sets of the service: published folders, their rows, exports and reviews."""
