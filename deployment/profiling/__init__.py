"""Measures the size, latency and memory of models."""
