"""What the node itself can tell about where it is and what it has."""
