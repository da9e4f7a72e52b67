"""The service's contract: what goes over HTTP, shared by server, SDK and CLI."""
