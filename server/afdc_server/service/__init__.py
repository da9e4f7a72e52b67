"""The service: settings, start-up, and the process that holds engine, job runner and API."""
