"""What every room may use; nothing here knows of training."""
