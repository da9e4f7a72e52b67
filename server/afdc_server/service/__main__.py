"""`python -m afdc_server.service`."""

from afdc_server.service.main import main

main()
