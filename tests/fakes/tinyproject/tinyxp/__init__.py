"""A Dora project that trains nothing."""
