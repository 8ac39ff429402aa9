"""What the verbs of `python -m research` do."""
