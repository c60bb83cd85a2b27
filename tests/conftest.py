"""What holds for every test."""

from hypothesis import settings

# How long an example takes is the machine's affair; `timeout` of pyproject.toml ends what hangs.
settings.register_profile("joulegram", deadline=None)
settings.load_profile("joulegram")
