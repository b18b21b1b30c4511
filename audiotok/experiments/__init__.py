"""From overrides to an experiment and its signature: Hydra's composition made cheap, and Dora's comparison kept."""
