"""Settings of the property tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("afdc", deadline=None)  # a busy two-core machine makes any example slow now and then
settings.load_profile("afdc")
