"""A build: from a job and its rows to what would be sent, and all that can be said against it before."""
