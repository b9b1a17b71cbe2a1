"""How often a trained model accepts images it should reject."""
