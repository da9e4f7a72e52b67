"""The parts of benchmarks/orchestration.py that run in processes and virtual environments of their own."""
