"""The dialects of Batch APIs: a file each, with what is said to a provider and how its replies are read."""
