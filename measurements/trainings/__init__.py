"""What finished trainings reached: a table, pictures, and a curve beside the published one."""
