"""Files of other programs, as data: their configurations and weights in our names, and ours in theirs."""
