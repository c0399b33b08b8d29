"""One results folder: its rows, its object store, where it came from."""
