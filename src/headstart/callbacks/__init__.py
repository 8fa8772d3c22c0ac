"""The built-in callbacks; none knows another."""
