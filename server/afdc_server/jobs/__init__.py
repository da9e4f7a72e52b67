"""Jobs of the service: what moves them, who runs them, and how they share one engine."""
