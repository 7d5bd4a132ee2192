"""A small run that is killed and goes on."""
