"""The search for the best training-free recipe in OmniDrop's design space, on the development split of needle."""
