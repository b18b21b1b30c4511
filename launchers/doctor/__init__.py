"""Is this machine ready? Checks, each with what to do."""
