"""What a run leaves behind, and what it shows on the screen."""
