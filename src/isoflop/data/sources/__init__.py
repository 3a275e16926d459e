"""The kinds of storage and of generated data, one file each."""
