"""What all tests share."""

from hypothesis import settings

settings.register_profile("coalface", deadline=None)  # the first example may wait for a compiler
settings.load_profile("coalface")
