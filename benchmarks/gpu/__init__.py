"""What the product does on a GPU: values, time, memory, waiting, resuming, NCCL: `python -m benchmarks.gpu`."""
