"""How the shipped tiny model was made. Not part of the wheel; see README.md beside this file."""
