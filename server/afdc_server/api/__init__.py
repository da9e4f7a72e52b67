"""The REST surface: one router a resource, and what they share."""
