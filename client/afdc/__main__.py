"""`python -m afdc` is `afdc`."""

from afdc.cli import main

main()
