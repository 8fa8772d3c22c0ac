"""What comes out of a network, made readable."""
