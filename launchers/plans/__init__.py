"""What launching a grid would do, and what it did last time."""
