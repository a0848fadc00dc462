"""One file per command; none knows another."""
