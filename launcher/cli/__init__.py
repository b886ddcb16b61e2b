"""What the user types: the commands and their options. ``app`` says which there are."""
