"""`python -m joulegram_service` is `joulegram`."""

from joulegram_service.cli import main

main()
