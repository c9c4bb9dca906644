"""What `convert` reads, one file a source."""
