"""Long measurements that show a property once: exact resume, no leaks, cost whatever the data's size, what copies flatter."""
