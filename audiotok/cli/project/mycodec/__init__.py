"""mycodec: experiments with audiotok."""
