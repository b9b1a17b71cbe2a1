"""The app for phones, measured in a browser."""
