"""AFS: what its clients ask, and twins of what it answers, written from the facts."""
