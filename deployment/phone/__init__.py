"""The app for phones: a folder of static files with the model inside."""
