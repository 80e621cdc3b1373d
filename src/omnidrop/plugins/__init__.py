"""What this library offers to other programs through their own plugin mechanisms; each in a folder of its own."""
