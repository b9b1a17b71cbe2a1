"""Measures the size, latency, throughput and memory of models."""
