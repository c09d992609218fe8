"""Child processes and shutdown signals."""
