"""What was measured beside the article: what the second task is good for, and whether this is the author's program."""
