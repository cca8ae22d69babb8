"""Records in the files of other tools, and back."""
