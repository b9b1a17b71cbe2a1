"""Long measurements that show a property once: exact resume, no leaks, cost independent of the data set's size."""
