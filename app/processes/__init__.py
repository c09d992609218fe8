"""Child processes of the service and the signals that end them."""
