"""Jobs on this machine: a queue that outlives the terminal."""
