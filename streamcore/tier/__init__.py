"""Old segments in an object store, readable by any engine, and read by ours as if they were here."""
