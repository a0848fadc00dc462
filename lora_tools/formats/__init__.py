"""The key namings of adapters: one file each, none of which knows another."""
