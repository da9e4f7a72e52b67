"""Seed sets: reading, checking, storing."""
