"""What can be checked before a run starts; one error lists all problems."""
