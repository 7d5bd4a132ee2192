"""A run's directory: its layout, and the lock that keeps it to one run."""
