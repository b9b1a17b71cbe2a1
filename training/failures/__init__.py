"""What to change after a known failure of a training, such as too little memory."""
