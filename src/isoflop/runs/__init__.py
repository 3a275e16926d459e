"""What a run leaves on disk, with one typed reader and writer for each: no torch, nothing of ours but errors."""
