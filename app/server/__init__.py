"""The listening process: listening, draining, connection limits."""
