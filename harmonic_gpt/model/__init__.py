"""The files that travel to the Hub with every checkpoint. They import nothing else of this package."""
