"""Files and settings as strangers and accidents make them, seeded: none hangs, executes, or passes for another."""
