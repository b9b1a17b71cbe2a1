"""What is done with a trained network: evaluation, prediction, export and measurement, each on its checkpoint alone."""
