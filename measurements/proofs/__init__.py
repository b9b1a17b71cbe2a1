"""Long measurements that show a property once: exact resume, no leaks, cost independent of the size of the data, what copies flatter."""
