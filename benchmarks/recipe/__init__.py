"""The experiments of docs/results.md."""
