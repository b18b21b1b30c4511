"""What a job asks of a cluster."""
