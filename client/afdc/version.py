"""The version of the installed package."""

from importlib.metadata import version


def afdc_version() -> str:
    """For example "0.1.0"; written in manifests and cards."""
    return version("afdc")
