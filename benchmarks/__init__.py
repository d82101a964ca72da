"""The benchmark program: `python -m benchmarks NAME`, from the repository."""
