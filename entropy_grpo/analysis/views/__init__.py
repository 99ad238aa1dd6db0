"""Tables over collected tokens, one view a module."""
