"""The Python client of an AFDC server: `from afdc import Client, AsyncClient`.

Every operation is written once, as a coroutine over a `Sender` (`sending`). `AsyncClient` awaits it; `Client` drives it
to its end with a sender that never waits (`faces`). Building requests and reading replies is pure (`core`,
`seed_upload`).
"""
