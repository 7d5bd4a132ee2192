"""Starting ranks: torchrun on this machine."""
