"""What each part of the recipe adds to a training step."""
