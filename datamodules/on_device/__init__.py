"""Augments whole batches on the device of the model."""
